"""Train base A's denoiser to predict the noise on SD1.5's schedule.

Batches, optimisers, averaged weights and checkpoints are those of base B's ``DenoiserStage``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .flow_training import DenoiserStage, FlowPlan
from .mmdit import ContextRows
from .rows import Rows
from .unet import UNet

TIMESTEPS = 1000


@dataclass(frozen=True)
class EpsPlan(FlowPlan):
    """Settings of base A's training: ``FlowPlan`` with other defaults and a weighting of the loss.

    Attributes:
        level_mean: Mean of the logarithm of sigma; the standard deviation is 1.
        uniform_share: Share of the rows whose timestep is drawn uniformly from the schedule instead.
        snr_clip: Bounds of the loss's weight on the error of the denoised latent, see
            ``noise_weight``.
    """

    batch: int = 64
    level_mean: float = 0.3
    uniform_share: float = 0.3
    snr_clip: tuple[float, float] = (0.2, 5.0)


def schedule() -> Tensor:
    """Return sigma at SD1.5's timesteps, (TIMESTEPS,).

    The square roots of the betas rise linearly from that of 0.00085 to that of 0.012.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt().float()


def noise_weight(sigma: Tensor, snr_clip: tuple[float, float]) -> Tensor:
    """Return the weight of the squared error of the noise, ``clip(SNR) / SNR``.

    With ``SNR = 1 / sigma ** 2``, the error of the denoised latent has the weight ``clip(SNR)``.
    The upper bound is min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556), which keeps almost clean
    latents from ruling the gradient. The lower one is truncated SNR (Salimans and Ho 2022,
    arXiv:2202.00512), which keeps the noisiest levels, where the layout of a picture is decided,
    from vanishing in it.
    """
    snr = sigma**-2
    return snr.clamp(*snr_clip) / snr


class EpsStage(DenoiserStage):
    """Training of the noise-predicting denoiser on stored rows.

    Args:
        folder: Folder of checkpoint and result.
        world: Hash of the world.
        rows: Latents and captions; None if the stage is only used for its weights.
        plan: Settings of the training.
        device: Device of the training.
    """

    plan: EpsPlan

    def __init__(
        self, folder: Path, world: str, rows: Rows | None, plan: EpsPlan, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        model = UNet().to(memory_format=torch.channels_last)
        super().__init__(folder, "base_a", world, rows, plan, model, device)
        self.sigmas = schedule()

    def stacked_matrices(self, name: str, parameter: Tensor) -> int:
        """Return 1 for matrices and 1 x 1 convolutions of the blocks, 2 for gated projections.

        AdamW updates the 3 x 3 kernels: over the 40 steps of a trial, Muon on them as flat matrices
        cost an eighth more time and gave no lower loss.
        """
        if parameter.ndim < 2 or not name.startswith(("input", "middle", "output")):
            return 0
        if "emb_layers" in name or parameter.shape[2:].numel() > 1:
            return 0
        return 2 if name.endswith("net.0.proj.weight") else 1

    def timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return the timesteps of a batch, (batch,) in 0..TIMESTEPS - 1."""
        logs = torch.randn(batch, generator=generator) + self.plan.level_mean
        uniform = torch.randint(TIMESTEPS, (batch,), generator=generator)
        from_uniform = torch.rand(batch, generator=generator) < self.plan.uniform_share
        drawn = torch.searchsorted(self.sigmas.log(), logs).clamp_max(TIMESTEPS - 1)
        return torch.where(from_uniform, uniform, drawn)

    def loss(self, latents: Tensor, prompts: ContextRows, generator: torch.Generator) -> Tensor:
        t = self.timesteps(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        sigma = self.sigmas[t][:, None, None, None]
        x = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        weight = noise_weight(sigma, self.plan.snr_clip).to(self.device)
        predicted = self.model(x.to(self.device), t.to(self.device), prompts.to(self.device))
        return (weight * (predicted - noise.to(self.device)).square()).mean()
