"""Smaller factors for the same or nearly the same change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import LowRank

ZERO_BELOW = 1e-7
"""Singular values below this share of the largest are rounding of fp32 factors."""


@dataclass(frozen=True)
class Truncated:
    """Factors of a lower rank, and what they cost.

    Args:
        factors: With a scale of 1.
        kept: Share of the change's energy on the inputs, 1 where nothing was cut.
        loss: By how much the damped objective of fusion grew.
    """

    factors: LowRank
    kept: float
    loss: float


def refactored(factors: LowRank) -> LowRank:
    """Return the same change with as many ranks as it needs, at most ``min(out, in)``.

    Both factors carry the same part of the magnitude, and the scale is 1. A change of nothing keeps
    one rank, so that it stays a LoRA. Computed in fp64, returned in the factors' dtype.
    """
    if factors.rank == 0:
        down = factors.down.new_zeros(1, *factors.shape[1:])
        return LowRank(down, factors.up.new_zeros(factors.shape[0], 1, *factors.up.shape[2:]))
    q_up, r_up, q_down, r_down = _triangles(factors)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    rank = max(1, int((values > ZERO_BELOW * values[0]).sum()))
    half = values[:rank].sqrt()
    up = q_up @ (left[:, :rank] * half)
    down = (half[:, None] * right[:rank]) @ q_down.mT
    return _like(factors, down, up)


def truncated(
    factors: LowRank,
    gram: Tensor,
    *,
    damping: float = 0.0,
    rank: int | None = None,
    energy: float | None = None,
) -> Truncated:
    """Return the change of a lower rank whose outputs are nearest, best of all of that rank.

    Energy is that of the layer's outputs on the inputs, ``tr(change (gram + damping) change^T)``.
    For a fused change, which is the optimum of the damped objective, the energy that is cut is
    exactly what the objective loses.

    Args:
        factors: The change.
        gram: ``(in, in)``, sum of the inputs' Gram matrices.
        damping: Absolute, as in ``Fused.damping``.
        rank: The rank to keep.
        energy: The share of the energy to keep, above 0 and at most 1.

    Raises:
        ValueError: Not exactly one of rank and energy is given, or it lies out of range.

    Reference: Eckart & Young 1936, in the metric of the inputs.
    """
    _check(rank, energy)
    exact = refactored(factors)
    q_up, r_up, _, _ = _triangles(exact)
    core = r_up.to(gram) @ exact.down.flatten(1).to(gram)  # (k, in), q_up's coordinates
    metric = core @ gram @ core.mT + damping * (core @ core.mT)
    values, vectors = torch.linalg.eigh((metric + metric.mT) / 2)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    whole = float(values.sum())
    if energy is not None:
        enough = values.cumsum(0) >= energy * whole
        rank = int(enough.nonzero()[0]) + 1 if energy < 1 else exact.rank
    if rank is None or rank >= exact.rank:
        return Truncated(exact, 1.0, 0.0)
    kept = vectors[:, :rank]
    small = refactored(_like(factors, kept.mT @ core, q_up.to(gram) @ kept))
    loss = float(values[rank:].sum())
    return Truncated(small, 1.0 - loss / whole if whole else 1.0, loss)


def factorised(change: Tensor, *, energy: float, most: int) -> tuple[LowRank, float]:
    """Return the nearest factors of a dense change, and the share of its energy that they keep.

    For changes that are stored in other forms than two factors. Computed in fp64, returned in fp32.

    Args:
        change: ``(out, in)`` or ``(out, in, kh, kw)``.
        energy: The share of the squared norm to keep, above 0 and at most 1.
        most: The largest rank; where it does not suffice, less energy is kept.

    Reference: Eckart & Young 1936.
    """
    left, values, right = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    energies = values.square().cumsum(0)
    whole = float(energies[-1])
    if whole == 0.0:
        shape = (1, *change.shape[1:])
        ones = (1,) * (change.ndim - 2)
        return LowRank(torch.zeros(shape), torch.zeros(change.shape[0], 1, *ones)), 1.0
    needed = int((energies < energy * whole).sum()) + 1
    present = int((values > ZERO_BELOW * values[0]).sum())
    rank = min(needed, present, most)
    half = values[:rank].sqrt()
    down = (half[:, None] * right[:rank]).float().reshape(rank, *change.shape[1:])
    up = (left[:, :rank] * half).float().reshape(-1, rank, *(1,) * (change.ndim - 2))
    return LowRank(down, up), min(1.0, float(energies[rank - 1]) / whole)


def _triangles(factors: LowRank) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    up = factors.up.flatten(1).double() * factors.scale
    q_up, r_up = torch.linalg.qr(up)  # (out, k), (k, rank)
    q_down, r_down = torch.linalg.qr(factors.down.flatten(1).double().mT)  # (in, k), (k, rank)
    return q_up, r_up, q_down, r_down


def _like(factors: LowRank, down: Tensor, up: Tensor) -> LowRank:
    ones = (1,) * (len(factors.shape) - 2)
    return LowRank(
        down.to(factors.down).view(-1, *factors.shape[1:]),
        up.to(factors.up).reshape(*up.shape, *ones),
    )


def _check(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise ValueError(
            f"either a rank or an energy must be given, got rank {rank} and energy {energy}"
        )
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ValueError(f"energy must lie above 0 and at most at 1, got {energy:g}")
