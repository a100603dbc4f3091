"""Define and train the bases' VAEs, with the layout and keys of ComfyUI's TAESD.

A VAE has 16 or 4 latent channels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stages import Stage

RAW_STD = 0.5  # standard deviation of the encoder's output, well inside the decoder's tanh clamp
# Scale and shift of the latent format that ComfyUI applies between VAE and denoiser, by channels.
LATENT_FORMATS = {16: (1.5305, 0.0609), 4: (0.18215, 0.0)}


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    """Three convolutions with a skip connection, with 64 input and output channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(64, 64), nn.ReLU(), _conv(64, 64), nn.ReLU(), _conv(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _encoder(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, 64), _Block()]
    for _ in range(3):
        layers += [_conv(64, 64, stride=2, bias=False), _Block(), _Block(), _Block()]
    return nn.Sequential(*layers, _conv(64, channels))


def _decoder(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(channels, 64), nn.ReLU()]
    for _ in range(3):
        layers += [_Block(), _Block(), _Block(), nn.Upsample(scale_factor=2)]
        layers += [_conv(64, 64, bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(64, 3))


class TinyVAE(nn.Module):
    """Encoder and decoder between pictures in 0..1 and latents at an eighth of the size.

    The keys equal those of ComfyUI's ``comfy.taesd.taesd.TAESD``. With ``vae_scale`` and
    ``vae_shift``, latents have mean 0 and standard deviation 1 after ComfyUI's latent format.

    Args:
        channels: Number of latent channels, a key of ``LATENT_FORMATS``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.taesd_encoder = _encoder(channels)
        self.taesd_decoder = _decoder(channels)
        self.vae_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.vae_shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.normal_(module.conv[4].weight, std=1e-3)  # type: ignore[arg-type]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return the denoiser's latents, (batch, channels, height / 8, width / 8)."""
        scale, shift = LATENT_FORMATS[self.channels]
        latents = self.taesd_encoder(pictures) / self.vae_scale + self.vae_shift
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures of the denoiser's latents, in 0..1."""
        scale, shift = LATENT_FORMATS[self.channels]
        raw = (latents / scale + shift - self.vae_shift) * self.vae_scale
        return self.taesd_decoder(raw).clamp(0, 1)

    @torch.no_grad()
    def fold_statistics(self, pictures: Tensor) -> None:
        """Scale the weights so that every raw latent channel has mean 0 and std ``RAW_STD``.

        Decoded pictures change little.
        """
        raw = self.taesd_encoder(pictures)
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) / RAW_STD + 1e-6
        last, first = self.taesd_encoder[-1], self.taesd_decoder[1]
        assert isinstance(last, nn.Conv2d)
        assert isinstance(first, nn.Conv2d)
        assert last.bias is not None
        assert first.bias is not None
        last.weight.div_(std[:, None, None, None])
        last.bias.sub_(mean).div_(std)
        # The decoder's first convolution pads with 0, so the shift is exact except at the border.
        first.bias.add_((first.weight * mean[:, None, None]).sum((1, 2, 3)))
        first.weight.mul_(std[:, None, None])

    @torch.no_grad()
    def set_scale(self, pictures: Tensor) -> None:
        """Set ``vae_scale`` and ``vae_shift`` to get mean 0 and std 1 after the latent format."""
        scale, shift = LATENT_FORMATS[self.channels]
        raw = self.taesd_encoder(pictures)
        mean, std = raw.mean().item(), raw.std().item()
        # (raw / vae_scale + vae_shift - shift) * scale == (raw - mean) / std
        self.vae_scale.fill_(std * scale)
        self.vae_shift.fill_(shift - mean / (std * scale))


def _warm_start(vae: TinyVAE, weights: dict[str, Tensor]) -> None:
    """Copy all weights whose shapes are equal; the convolutions at the latent may differ."""
    own = vae.state_dict()
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape and value.ndim:
            own[name].copy_(value)


class VAEStage(Stage):
    """Training of a VAE on random crops of scenes of the whole world.

    Args:
        folder: Folder of checkpoint and result.
        world: Hash of the world.
        pictures: Training pictures, uint8 (count, SIDE, SIDE, 3).
        channels: Number of latent channels: 16 for base B, 4 for base A.
        steps: Number of steps, over which the learning rate follows a half cosine.
        batch: Number of crops per step.
        device: Device of the training.
        start: Initial weights from a VAE of the same layout; None for random weights.
    """

    CROP = 64

    def __init__(
        self,
        folder: Path,
        world: str,
        pictures: Tensor,
        *,
        channels: int,
        steps: int,
        batch: int,
        device: str = "cpu",
        start: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(folder, f"vae{channels}", world, steps)
        self.pictures, self.batch, self.device = pictures, batch, device
        torch.manual_seed(0)
        self.vae = TinyVAE(channels)
        if start is not None:
            _warm_start(self.vae, start)
        self.vae.to(device, memory_format=torch.channels_last)
        self.weights = [p for p in self.vae.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def state(self) -> dict:
        return {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _crops(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.pictures), (self.batch,), generator=generator)
        # Crops begin at multiples of 8, so that patterns align with the latent grid as in whole
        # pictures.
        room = (self.pictures.shape[1] - self.CROP) // 8 + 1
        places = (8 * torch.randint(room, (self.batch, 2), generator=generator)).tolist()
        crops = [
            self.pictures[number, y : y + self.CROP, x : x + self.CROP]
            for number, (y, x) in zip(chosen.tolist(), places, strict=True)
        ]
        return _to_float(torch.stack(crops), self.device)

    def step(self, number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        x = self._crops(generator)
        rate = 6e-4 * min(1, (number + 1) / 60)
        rate *= 0.5 + 0.5 * math.cos(math.pi * number / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        latent = self.vae.taesd_encoder(x)
        noise = torch.randn(latent.shape, generator=generator).to(self.device)
        std = latent.detach().std((0, 2, 3), keepdim=True)
        error = self.vae.taesd_decoder(latent + 0.03 * std * noise) - x
        mse = error.pow(2).mean()
        loss = 4 * mse + 0.5 * error.abs().mean() + 1e-4 * latent.pow(2).mean()
        if number >= self.steps // 3:
            spread, centre = latent.std((0, 2, 3)), latent.mean((0, 2, 3))
            loss = loss + 2e-3 * ((spread / RAW_STD - 1).pow(2) + (centre / RAW_STD).pow(2)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        if number + 1 == self.steps // 3:
            self.vae.fold_statistics(_to_float(self.pictures[:256], self.device))
        return -10 * math.log10(mse.item())

    def finish(self) -> None:
        self.vae.eval()
        self.vae.set_scale(_to_float(self.pictures[:512], self.device))
        self.write_result(self.vae.state_dict())


def _to_float(pictures: Tensor, device: str) -> Tensor:
    """Return uint8 (batch, height, width, 3) as floats (batch, 3, height, width) in 0..1."""
    x = pictures.permute(0, 3, 1, 2).to(device).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


def load_vae(path: Path, device: str = "cpu") -> TinyVAE:
    """Return the trained VAE of a result file."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    vae = TinyVAE(state["taesd_decoder.1.weight"].shape[1])
    vae.load_state_dict(state)
    return vae.eval().to(device, memory_format=torch.channels_last)


def round_trip(vae: TinyVAE, pictures: Tensor, noise: float = 0.0) -> Tensor:
    """Return pictures after encoding and decoding, float (batch, 3, height, width).

    Args:
        vae: VAE of the round trip.
        pictures: Pictures, float (batch, 3, height, width) in 0..1.
        noise: Share of the latent's variance that is replaced by noise.
    """
    latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last))
    if noise:
        latents = (1 - noise) ** 0.5 * latents + noise**0.5 * torch.randn_like(latents)
    return vae.decode(latents)


def psnr(vae: TinyVAE, pictures: Tensor, batch: int = 32) -> list[float]:
    """Return the PSNR in dB of each uint8 picture (height, width, 3) after a round trip."""
    values = []
    for part in pictures.split(batch):
        x = _to_float(part, next(vae.parameters()).device.type)
        mse = (round_trip(vae, x) - x).pow(2).mean((1, 2, 3))
        values += (-10 * mse.log10()).tolist()
    return values
