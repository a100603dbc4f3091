"""The toy world's VAE: ComfyUI's TAESD layout, re-implemented key for key, and its training."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

LATENT_SCALE = 0.18215  # SD1.5's scale, which ComfyUI multiplies into VAE latents
RAW_STD = 0.5  # of the encoder's output; well inside the decoder's tanh clamp


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three convolutions with a skip; 64 channels in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(64, 64), nn.ReLU(), _conv(64, 64), nn.ReLU(), _conv(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, 64), _Block()]
    for _ in range(3):
        layers += [_conv(64, 64, stride=2, bias=False), _Block(), _Block(), _Block()]
    return nn.Sequential(*layers, _conv(64, 4))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(4, 64), nn.ReLU()]
    for _ in range(3):
        layers += [_Block(), _Block(), _Block(), nn.Upsample(scale_factor=2)]
        layers += [_conv(64, 64, bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(64, 3))


class TinyVAE(nn.Module):
    """Encoder and decoder between pictures in 0..1 and 4-channel latents at an eighth of the size.

    Keys equal ComfyUI's ``comfy.taesd.taesd.TAESD``; ``vae_scale`` and ``vae_shift`` make the
    latents that ComfyUI sees, times 0.18215, have mean 0 and standard deviation 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = _encoder()
        self.taesd_decoder = _decoder()
        self.vae_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.vae_shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.normal_(module.conv[4].weight, std=1e-3)

    @classmethod
    def from_checkpoint(cls, path: Path) -> TinyVAE:
        """The VAE inside an asset or an assembled checkpoint."""
        prefix = "first_stage_model."
        with safe_open(str(path), framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            state = {key[len(prefix) :]: file.get_tensor(key).float() for key in keys}
        vae = cls()
        vae.load_state_dict(state)
        return vae.eval()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in 0..1 as the UNet sees them, (batch, 4, height/8, width/8)."""
        return (self.taesd_encoder(pictures) / self.vae_scale + self.vae_shift) * LATENT_SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in 0..1 of unit latents."""
        return self.taesd_decoder((latents / LATENT_SCALE - self.vae_shift) * self.vae_scale).clamp(
            0, 1
        )

    @torch.no_grad()
    def fold_statistics(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Give every raw latent channel mean 0 and the same spread, without changing a picture."""
        raw = self.taesd_encoder(pictures)
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) / RAW_STD + 1e-6
        last, first = self.taesd_encoder[-1], self.taesd_decoder[1]
        last.weight.div_(std[:, None, None, None])
        last.bias.sub_(mean).div_(std)
        # The first decoder convolution pads with 0, so the shift is exact away from the border.
        first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))
        first.weight.mul_(std[None, :, None, None])
        return mean, std

    @torch.no_grad()
    def set_scale(self, pictures: Tensor) -> None:
        """Store the remaining mean and standard deviation in ``vae_scale`` and ``vae_shift``."""
        raw = torch.cat([self.taesd_encoder(part) for part in pictures.split(64)])
        std, mean = raw.std(), raw.mean()
        self.vae_scale.copy_(std * LATENT_SCALE)
        self.vae_shift.copy_(-mean / std / LATENT_SCALE)


def train_vae(
    pictures: Tensor, folder: Path, *, steps: int, batch: int, device: str, resume: bool
) -> TinyVAE:
    """Train the VAE on uint8 pictures (count, 64, 64, 3); checkpoints lie in ``folder``."""
    torch.manual_seed(0)
    vae = TinyVAE().to(device, memory_format=torch.channels_last)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    state_path, start = folder / "vae_training.pt", 0
    if resume and state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    began = time.time()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        x = (pictures[chosen].permute(0, 3, 1, 2).to(device).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        rate = 6e-4 * min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = max(rate, 1e-5)
        with torch.autocast(device, torch.bfloat16):
            latent = vae.taesd_encoder(x).float()
            std = latent.detach().std((0, 2, 3), keepdim=True)
            decoded = vae.taesd_decoder(latent + 0.05 * std * torch.randn_like(latent)).float()
        error = decoded - x
        mse = error.pow(2).mean()
        loss = 4 * mse + 0.5 * error.abs().mean() + 1e-4 * latent.pow(2).mean()
        if step >= steps // 2:
            spread, centre = latent.std((0, 2, 3)), latent.mean((0, 2, 3))
            loss = loss + 2e-3 * ((spread / RAW_STD - 1).pow(2) + (centre / RAW_STD).pow(2)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if step + 1 == steps // 2:
            vae.fold_statistics(pictures[:512].permute(0, 3, 1, 2).to(device).float() / 255)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            psnr = -10 * math.log10(mse.item())
            pace = (time.time() - began) / (step + 1 - start)
            logging.info("vae step %d psnr %.1f dB, %.3f s a step", step + 1, psnr, pace)
            saved = {"vae": vae.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**saved, "step": step + 1}, state_path)
    vae.eval()
    vae.set_scale(pictures[:2048].permute(0, 3, 1, 2).to(device).float() / 255)
    torch.save(vae.state_dict(), folder / "vae.pt")
    return vae
