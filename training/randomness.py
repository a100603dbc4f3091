"""Stateless random numbers, which depend only on the seed, the step and the sample."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(seed: int, *where: int | str) -> torch.Generator:
    """Return a CPU generator that depends only on the seed and the given position.

    No random number depends on an earlier one, so resuming and re-packing do not change any.
    """
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_for(latent: Tensor, seed: int, step: int, sample: int, offset: float = 0.0) -> Tensor:
    """Return standard normal noise of the latent's shape, fp32 on the CPU.

    Args:
        latent: ``(channel, ...)``, of which only the shape is used.
        seed: Seed of the run.
        step: Number of the step, from 0.
        sample: Number of the sample within the step.
        offset: Scale of an additional noise that is constant over each channel, so that the overall
            brightness is learnt too.
    """
    noise = torch.randn(latent.shape, generator=generator_for(seed, "noise", step, sample))
    if offset:
        shape = (len(latent), *[1] * (latent.ndim - 1))
        level = torch.randn(shape, generator=generator_for(seed, "offset", step, sample))
        noise = noise + offset * level
    return noise


def uniform_timestep(seed: int, step: int, sample: int) -> Tensor:
    """Return a uniform random number in [0, 1) for the noise level, a scalar."""
    return torch.rand((), generator=generator_for(seed, "sigma", step, sample))


def uniform(seed: int, *where: int | str) -> float:
    """Return a uniform random number in [0, 1) that depends only on the seed and the position."""
    return float(torch.rand((), generator=generator_for(seed, *where)))


def coin(seed: int, step: int, sample: int) -> bool:
    """Return a fair random choice, such as whether the picture of a sample is mirrored."""
    return uniform(seed, "coin", step, sample) < 0.5


def shuffled_round(seed: int, count: int, step: int, what: str = "round") -> int:
    """Return the index of the item for a step: all items are shuffled for each round.

    Args:
        seed: Seed of the run.
        count: Number of items.
        step: Number of the step, from 0.
        what: Kind of the items; different kinds are shuffled independently.
    """
    order = torch.randperm(count, generator=generator_for(seed, what, step // count))
    return int(order[step % count])
