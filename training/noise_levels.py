"""Which noise levels a run draws, and what each of them counts."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainingConfig
from .denoiser import Denoiser
from .randomness import generator_for, share_for

_BELOW_ONE = 1 - 2**-24  # the largest of fp32


def share_at(config: TrainingConfig, step: int, sample: int) -> Tensor:
    """Return a draw in [0, 1) of the model's table of noise levels, a scalar.

    ``uniform`` as in Ho et al. 2020; ``logit-normal`` is the sigmoid of a standard normal, Esser
    et al. 2024, arXiv:2403.03206, section 3.1; ``shifted`` moves a uniform draw towards noise by
    ``s u / (1 + (s - 1) u)``, the same paper's equation 23.
    """
    share = share_for(config.seed, step, sample)
    if config.timesteps == "logit-normal":
        generator = generator_for(config.seed, "sigma", step, sample)
        share = torch.sigmoid(torch.randn((), generator=generator))
    elif config.timesteps == "shifted":
        shift = config.timestep_shift
        share = shift * share / (1 + (shift - 1) * share)
    return share.clamp(max=_BELOW_ONE)


def min_snr_weights(denoiser: Denoiser, sigma: Tensor, like: Tensor, gamma: float) -> Tensor:
    """Return what each row's output error counts under min-SNR weighting, ``(batch,)``.

    The clean latent's error counts ``min(SNR, gamma)``. An output error is that error over ``b``,
    so it counts ``min(SNR, gamma) b^2``: ``min(SNR, gamma) / SNR`` for eps and
    ``min(SNR, gamma) / (SNR + 1)`` for v.

    Args:
        denoiser: Its forward process gives the signal-to-noise ratio.
        sigma: ``(batch,)``.
        like: Latents ``(batch, channel, ...)``; only shape, dtype and device are read.
        gamma: 5 in the paper.

    Reference: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    one, zero = torch.ones_like(like), torch.zeros_like(like)
    signal = denoiser.noised(one, zero, sigma).float().flatten(1)[:, 0]
    noise = denoiser.noised(zero, one, sigma).float().flatten(1)[:, 0]
    snr = (signal / noise).square()
    scale = denoiser.output_scale(sigma, one).float().expand_as(like).flatten(1)[:, 0]
    return snr.clamp(max=gamma) * scale.square()
