"""Gradient fusion in closed form: many low-rank changes of a layer into one low-rank change.

Each concept has a change ``up_i @ down_i`` and inputs ``X_i`` of its own. The fused change is the
one whose outputs lie nearest to every concept's own on that concept's own inputs; the paper finds
it by L-BFGS on stored activations. It has a closed form in ``G_i = X_i^T X_i``,

    change = sum_i up_i @ (weight_i * down_i @ G_i) @ (sum_i weight_i * G_i + damping)^-1,

so it is a low-rank change itself, of the sum of the ranks, with ``up_i`` as they are.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .factors import LowRank
from .gram import Gram

Anchor = Literal["base", "average"]
Solver = Literal["cholesky", "eigenvalues"]

STAGE_DAMPING: dict[str, float] = {"text": 1e-3, "cross": 1e-4, "spatial": 3e-2}
"""Relative damping by stage: text encoder, keys and values of cross-attention, all other layers.

# Differs from the paper: it has no damping, and stops L-BFGS early (500 iterations, 50 in the last
# stage). On power-law inputs of real widths the first two reach its objective or a lower one at its
# norm; no damping at all made the change on ordinary inputs 50 x too strong. Of eight concepts on
# the toy base, 1e-4, 1e-6 and 1e-2 gave changes 10, 6 and 4 times as large as one concept's own and
# spoilt colours. ``damping_at_norm`` finds one for a given norm.
"""

ROW_TOLERANCE = 1e-12
"""Singular values of fp64 rows below this share of the largest count as zero."""

ROUNDED_ROW_TOLERANCE = 1e-6
"""The same for rows that were computed in fp32 or less."""


@dataclass(frozen=True)
class Wanted:
    """What one concept wants of one layer.

    A concept that does not change the layer has factors of rank 0: it wants its inputs' outputs to
    stay as they are.

    Args:
        factors: The concept's change.
        strength: The multiplier at which the change is to be reproduced.
        weight: The concept's importance; at 0 it is left out.

    Raises:
        ValueError: The strength is not finite, or the weight is negative or not finite.
    """

    factors: LowRank
    strength: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be a finite number, got {self.strength}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be 0 or a positive number, got {self.weight}")

    @property
    def down(self) -> Tensor:
        """Return ``(rank, in)`` in fp64, unscaled."""
        return self.factors.down.flatten(1).double()

    @property
    def up(self) -> Tensor:
        """Return ``(out, rank)`` in fp64, scaled by the strength and the factors' own scale."""
        return self.factors.up.flatten(1).double() * (self.strength * self.factors.scale)


@dataclass(frozen=True)
class Fused:
    """A fused change, and how it was found.

    Args:
        factors: In fp64, with a scale of 1; their rank is the sum of the concepts' ranks.
        damping: What was added to the Gram diagonal.
        solver: ``eigenvalues`` where the Gram matrix was singular.
    """

    factors: LowRank
    damping: float
    solver: Solver


def fuse_from_gram(
    wanted: Sequence[Wanted],
    projected: Sequence[Tensor],
    gram: Gram,
    *,
    damping: float,
    anchor: Anchor = "base",
) -> Fused:
    """Return the fused change from statistics of the inputs.

    To preserve the base on other inputs, add those inputs' Gram to ``gram``.

    Args:
        wanted: One for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
        damping: Relative, in units of the mean eigenvalue of ``gram``. At 0 the solution that
            differs least from the anchor is returned.
        anchor: What the damping pulls to: no change, or the weighted mean of the changes.

    Raises:
        ValueError: The damping is negative, no concept has a weight, or shapes differ.
    """
    _check(wanted, projected, "projected statistic", damping, anchor)
    absolute = damping * gram.mean_eigenvalue
    shares = _shares(wanted, anchor)
    # What the statistics ask for beyond the anchor, then divided by them.
    asked = torch.cat(
        [
            one.weight * part.to(gram.matrix) - share * (one.down.to(gram.matrix) @ gram.matrix)
            for one, part, share in zip(wanted, projected, shares, strict=True)
            if one.weight
        ]
    )  # (sum of ranks, in)
    beyond, solver = _divided(asked, gram.matrix, absolute, gram.zero_below)
    return Fused(_assembled(wanted, shares, beyond), absolute, solver)


def fuse_from_rows(
    wanted: Sequence[Wanted],
    rows: Sequence[Tensor],
    *,
    damping: float,
    anchor: Anchor = "base",
    prior: Tensor | None = None,
    even: bool = False,
) -> Fused:
    """Return the fused change from the inputs themselves: for layers that see few of them.

    The same solution as ``fuse_from_gram``. Where there are fewer rows than the layer is wide, and
    without damping, it keeps the digits that squaring the inputs costs.

    Args:
        wanted: One for each concept.
        rows: ``(row, in)`` for each concept.
        damping: As in ``fuse_from_gram``.
        anchor: As in ``fuse_from_gram``.
        prior: ``(row, in)``, inputs on which nothing shall change.
        even: Whether every concept, and the prior, counts as its mean row, however many it has.

    Raises:
        ValueError: As in ``fuse_from_gram``.
    """
    _check(wanted, rows, "set of rows", damping, anchor)
    shares = _shares(wanted, anchor)
    blocks = _blocks(wanted, rows, prior, even)
    x = torch.cat(blocks)  # (row, in)
    absolute = damping * float(x.square().sum()) / x.shape[1]
    asked = []
    for index, (one, share) in enumerate(zip(wanted, shares, strict=True)):
        if one.weight:
            down = one.down.to(x)
            own = [
                down @ block.mT if index == other else down.new_zeros(len(down), len(block))
                for other, block in enumerate(blocks)
            ]
            asked.append(torch.cat(own, 1) - share * (down @ x.mT))
    if absolute > 0 and len(x) <= x.shape[1]:
        held, solver = _divided(torch.cat(asked), x @ x.mT, absolute)
        beyond = held @ x
    elif absolute > 0:
        beyond, solver = _divided(torch.cat(asked) @ x, x.mT @ x, absolute)
    else:
        given = [*rows] if prior is None else [*rows, prior]
        rounded = any(block.dtype != torch.float64 for block in given)
        tolerance = ROUNDED_ROW_TOLERANCE if rounded else ROW_TOLERANCE
        beyond = torch.cat(asked) @ torch.linalg.pinv(x, rtol=tolerance).mT
        solver = "eigenvalues"
    return Fused(_assembled(wanted, shares, beyond), absolute, solver)


def statistics_of_rows(
    wanted: Sequence[Wanted],
    rows: Sequence[Tensor],
    *,
    prior: Tensor | None = None,
    even: bool = False,
) -> tuple[Gram, list[Tensor]]:
    """Return what ``fuse_from_gram`` takes, from the inputs themselves.

    Args:
        wanted: One for each concept.
        rows: As in ``fuse_from_rows``, as are the next two.
        prior: Added to the sum.
        even: Whether every concept, and the prior, counts as its mean row.

    Returns:
        The sum of the concepts' Gram matrices times their weights, and ``(rank, in)`` for each
        concept, unweighted.
    """
    x = torch.cat(_blocks(wanted, rows, prior, even))
    matrix = x.mT @ x
    rounded = any(block.dtype != torch.float64 for block in rows)
    projected = [
        (one.down @ own.double().mT) @ own.double() / (max(1, len(own)) if even else 1)
        for one, own in zip(wanted, rows, strict=True)
    ]
    return Gram(matrix, len(x), float(matrix.trace()), x.shape[1], rounded), projected


def span_basis(downs: Sequence[Tensor]) -> Tensor:
    """Return orthonormal rows that span those of every ``down``, ``(span, in)`` in fp64.

    For sites too wide for an ``(in, in)`` matrix: statistics of the inputs within this span are
    ``(span, span)``, and the best change whose ``down`` lies in it is found from them. It is the
    optimum where the inputs lie in the span, and otherwise fits less well than the full form.

    Args:
        downs: ``(rank, in)`` each.

    Reference: SSR-Merge, arXiv:2606.10617, restricts the change alike.
    # Differs from the paper: it damps in the coordinates of the stacked rows; an orthonormal basis
    # damps the change itself, whatever the factors' own scale.
    """
    stacked = torch.cat([down.flatten(1).double() for down in downs])
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    if not len(values):
        return stacked
    return rows[values > ROUNDED_ROW_TOLERANCE * values[0]].contiguous()


def within_span(wanted: Wanted, basis: Tensor) -> Wanted:
    """Return the same wish in coordinates of the basis: its ``down`` is ``(rank, span)``."""
    factors = wanted.factors
    down = wanted.down.to(basis) @ basis.mT
    inside = LowRank(down, factors.up.flatten(1), factors.alpha)
    return Wanted(inside, wanted.strength, wanted.weight)


def expanded(fused: Fused, basis: Tensor, shape: tuple[int, ...]) -> Fused:
    """Return a change that was fused within a span as one of the whole layer.

    Args:
        fused: What ``fuse_from_gram`` returned for wishes within the span.
        basis: The span, ``(span, in)``.
        shape: Of the layer's weight, ``(out, in, ...)``.
    """
    down = fused.factors.down @ basis.to(fused.factors.down)
    factors = _shaped(down, fused.factors.up, shape)
    return Fused(factors, fused.damping, fused.solver)


def _divided(
    asked: Tensor, matrix: Tensor, damping: float, zero_below: float = 0.0
) -> tuple[Tensor, Solver]:
    """Return ``asked @ (matrix + damping)^-1``; without damping the pseudo-inverse.

    Args:
        asked: ``(row, in)``.
        matrix: ``(in, in)``, positive semi-definite but for rounding.
        damping: Absolute.
        zero_below: Share of the largest eigenvalue below which one counts as zero undamped.
    """
    if damping > 0:
        damped = matrix.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return torch.cholesky_solve(asked.mT, factor).mT, "cholesky"
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0.0)  # below zero by rounding alone
    if damping > 0:
        inverse = 1.0 / (values + damping)
    else:
        counts = values > zero_below * values[-1:]
        inverse = torch.where(counts, 1.0 / values, 0.0)
    return (asked @ vectors * inverse) @ vectors.mT, "eigenvalues"


def _blocks(
    wanted: Sequence[Wanted], rows: Sequence[Tensor], prior: Tensor | None, even: bool
) -> list[Tensor]:
    """Return all input rows in fp64, times the root of what each counts."""
    weights = [one.weight for one in wanted]
    if prior is not None:
        rows, weights = [*rows, prior], [*weights, 1.0]
    return [
        x.double() * math.sqrt(weight / max(1, len(x)) if even else weight)
        for x, weight in zip(rows, weights, strict=True)
    ]


def _shares(wanted: Sequence[Wanted], anchor: Anchor) -> list[float]:
    """Return each concept's part in the anchor: its share of the weights, or nothing."""
    whole = sum(one.weight for one in wanted)
    return [one.weight / whole if anchor == "average" else 0.0 for one in wanted]


def _assembled(wanted: Sequence[Wanted], shares: Sequence[float], beyond: Tensor) -> LowRank:
    kept = [(one, share) for one, share in zip(wanted, shares, strict=True) if one.weight]
    up = torch.cat([one.up.to(beyond) for one, _ in kept], 1)
    down = torch.cat([share * one.down.to(beyond) for one, share in kept]) + beyond
    return _shaped(down, up, wanted[0].factors.shape)


def _shaped(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> LowRank:
    rank = down.shape[0]
    return LowRank(down.view(rank, *shape[1:]), up.view(*up.shape, *(1,) * (len(shape) - 2)))


def _check(
    wanted: Sequence[Wanted], given: Sequence[Tensor], what: str, damping: float, anchor: str
) -> None:
    if not any(one.weight > 0 for one in wanted):
        raise ValueError(
            "at least one concept must have a weight above 0, "
            f"got {[one.weight for one in wanted]}; raise the weight of what shall be fused"
        )
    if len(given) != len(wanted):
        raise ValueError(
            f"there must be one {what} for each concept, got {len(given)} for {len(wanted)}"
        )
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be 0 or a positive number, got {damping}")
    if anchor not in ("base", "average"):
        raise ValueError(f'anchor must be "base" or "average", got "{anchor}"')
    for one in wanted[1:]:
        if one.factors.shape != wanted[0].factors.shape:
            raise ValueError(
                "concepts must change the same layer, "
                f"got shapes {wanted[0].factors.shape} and {one.factors.shape}; "
                "fuse LoRAs of one architecture"
            )
