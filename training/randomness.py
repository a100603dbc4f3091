"""Stateless randomness: everything about a step follows from (seed, step, sample)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(seed: int, *where: int | str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the place alone.

    Resume, cancel and re-packing come for free: no draw depends on an earlier one.
    """
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_for(latent: Tensor, seed: int, step: int, sample: int, offset: float = 0.0) -> Tensor:
    """Return standard normal noise of the latent's shape, fp32 on the CPU.

    Args:
        latent: ``(channel, ...)``.
        seed: Of the run.
        step: From 0.
        sample: Within the step.
        offset: Adds that much of a draw that is constant over each channel, so that brightness
            as a whole is learnt too.
    """
    noise = torch.randn(latent.shape, generator=generator_for(seed, "noise", step, sample))
    if offset:
        shape = (len(latent), *[1] * (latent.ndim - 1))
        level = torch.randn(shape, generator=generator_for(seed, "offset", step, sample))
        noise = noise + offset * level
    return noise


def share_for(seed: int, step: int, sample: int) -> Tensor:
    """Return a uniform draw in [0, 1) for the noise level, a scalar."""
    return torch.rand((), generator=generator_for(seed, "sigma", step, sample))


def uniform(seed: int, *where: int | str) -> float:
    """Return a uniform draw in [0, 1) that depends on the seed and the place alone."""
    return float(torch.rand((), generator=generator_for(seed, *where)))


def coin(seed: int, step: int, sample: int) -> bool:
    """Return a fair draw, such as whether this sample's picture is mirrored."""
    return uniform(seed, "coin", step, sample) < 0.5


def shuffled_round(seed: int, count: int, step: int, what: str = "round") -> int:
    """Return which of ``count`` items step ``step`` takes: seeded, each once per round.

    Args:
        seed: Of the run.
        count: Of the items.
        step: From 0.
        what: Is drawn; items of two kinds are then taken independently.
    """
    order = torch.randperm(count, generator=generator_for(seed, what, step // count))
    return int(order[step % count])
