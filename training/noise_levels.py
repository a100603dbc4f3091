"""Sample training timesteps, and weight the loss by noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainingConfig
from .denoiser import Denoiser
from .randomness import generator_for, uniform_timestep

_BELOW_ONE = 1 - 2**-24  # the largest fp32 number below 1


def sample_timestep(config: TrainingConfig, step: int, sample: int) -> Tensor:
    """Return one training timestep as a fraction in [0, 1) of the model's schedule, a scalar.

    ``uniform`` follows Ho et al. 2020. ``logit-normal`` is the sigmoid of a standard normal, Esser
    et al. 2024, arXiv:2403.03206, section 3.1. ``shifted`` moves a uniform sample towards noise by
    ``s u / (1 + (s - 1) u)``, equation 23 of the same paper.
    """
    share = uniform_timestep(config.seed, step, sample)
    if config.timesteps == "logit-normal":
        generator = generator_for(config.seed, "sigma", step, sample)
        share = torch.sigmoid(torch.randn((), generator=generator))
    elif config.timesteps == "shifted":
        shift = config.timestep_shift
        share = shift * share / (1 + (shift - 1) * share)
    return share.clamp(max=_BELOW_ONE)


def min_snr_weights(denoiser: Denoiser, sigma: Tensor, like: Tensor, gamma: float) -> Tensor:
    """Return the min-SNR weight of each row's output error, ``(batch,)``.

    The error of the clean latent has weight ``min(SNR, gamma)``. The output error is this error
    divided by ``b``, so its weight is ``min(SNR, gamma) b^2``: ``min(SNR, gamma) / SNR`` for eps
    and ``min(SNR, gamma) / (SNR + 1)`` for v.

    Args:
        denoiser: Base model, whose forward process gives the signal-to-noise ratio.
        sigma: Noise levels, ``(batch,)``.
        like: Latents ``(batch, channel, ...)``, of which only shape, dtype and device are used.
        gamma: Upper limit of the weight; 5 in the paper.

    Reference: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    one, zero = torch.ones_like(like), torch.zeros_like(like)
    signal = denoiser.noised(one, zero, sigma).float().flatten(1)[:, 0]
    noise = denoiser.noised(zero, one, sigma).float().flatten(1)[:, 0]
    snr = (signal / noise).square()
    scale = denoiser.output_scale(sigma, one).float().expand_as(like).flatten(1)[:, 0]
    return snr.clamp(max=gamma) * scale.square()
