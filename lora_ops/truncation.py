"""Reduce the rank of a low-rank change, exactly or with the smallest loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import LowRank

ZERO_BELOW = 1e-7  # smaller singular values, relative to the largest, are rounding of fp32 factors


@dataclass(frozen=True)
class Truncation:
    """A change of lower rank, and what the truncation cost.

    Args:
        factors: Factors of the lower rank, with a scale of 1.
        kept: Fraction of the change's energy on the inputs that is kept; 1 if nothing was cut.
        loss: Increase of the damped objective of fusion.
    """

    factors: LowRank
    kept: float
    loss: float


def refactored(factors: LowRank) -> LowRank:
    """Return the same change at its smallest rank, which is at most ``min(out, in)``.

    The magnitude is split equally between both factors, and the scale is 1. A change of zero keeps
    rank 1, so that it remains a LoRA. Computed in fp64, returned in the factors' dtype.
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
) -> Truncation:
    """Return the change of lower rank whose outputs are nearest to those of the given change.

    The energy is that of the layer's outputs, ``tr(change (gram + damping) change^T)``. For a fused
    change, which is the optimum of the damped objective, the energy that is cut is exactly the
    increase of the objective.

    Args:
        factors: The change.
        gram: ``(in, in)``, sum of the inputs' Gram matrices.
        damping: Absolute damping, from ``Fused.damping``.
        rank: Rank to keep.
        energy: Fraction of the energy to keep, above 0 and at most 1.

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
    total = float(values.sum())
    if energy is not None:
        enough = values.cumsum(0) >= energy * total
        rank = int(enough.nonzero()[0]) + 1 if energy < 1 else exact.rank
    if rank is None or rank >= exact.rank:
        return Truncation(exact, 1.0, 0.0)
    kept = vectors[:, :rank]
    small = refactored(_like(factors, kept.mT @ core, q_up.to(gram) @ kept))
    loss = float(values[rank:].sum())
    return Truncation(small, 1.0 - loss / total if total else 1.0, loss)


def factorised(change: Tensor, *, energy: float, most: int) -> tuple[LowRank, float]:
    """Return the nearest factors of a dense change, and the fraction of its energy that they keep.

    It serves changes that are not stored as two factors. Computed in fp64, returned in fp32.

    Args:
        change: ``(out, in)`` or ``(out, in, kh, kw)``.
        energy: Fraction of the squared norm to keep, above 0 and at most 1.
        most: Maximum rank; if it is too small, less energy is kept.

    Reference: Eckart & Young 1936.
    """
    left, values, right = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    energies = values.square().cumsum(0)
    total = float(energies[-1])
    if total == 0.0:
        shape = (1, *change.shape[1:])
        ones = (1,) * (change.ndim - 2)
        return LowRank(torch.zeros(shape), torch.zeros(change.shape[0], 1, *ones)), 1.0
    needed = int((energies < energy * total).sum()) + 1
    present = int((values > ZERO_BELOW * values[0]).sum())
    rank = min(needed, present, most)
    half = values[:rank].sqrt()
    down = (half[:, None] * right[:rank]).float().reshape(rank, *change.shape[1:])
    up = (left[:, :rank] * half).float().reshape(-1, rank, *(1,) * (change.ndim - 2))
    return LowRank(down, up), min(1.0, float(energies[rank - 1]) / total)


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
