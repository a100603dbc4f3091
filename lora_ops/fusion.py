"""Gradient fusion in closed form: merge several low-rank changes of a layer into one.

Concept ``i`` has a change ``up_i @ down_i`` and inputs ``X_i``. The fused change is the one whose
outputs lie nearest to every concept's outputs on that concept's inputs; the paper finds it by
L-BFGS on stored activations. It has a closed form in ``G_i = X_i^T X_i``,

    change = sum_i up_i @ (weight_i * down_i @ G_i) @ (sum_i weight_i * G_i + damping)^-1,

which is again a low-rank change: its rank is the sum of the ranks, and every ``up_i`` is unchanged.

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

# Relative damping by stage: text encoder, keys and values of cross-attention, all other layers.
# The paper has no damping; it stops L-BFGS early (500 iterations, 50 in the last stage). On
# power-law inputs of real widths the first two values reach the paper's objective or a lower one at
# its norm; without damping the change on ordinary inputs was 50 times too strong. With eight
# concepts on the toy base, 1e-4, 1e-6 and 1e-2 gave changes 10, 6 and 4 times as large as that of
# one concept and spoilt colours. ``damping_at_norm`` finds the damping for a given norm.
STAGE_DAMPING: dict[str, float] = {"text": 1e-3, "cross": 1e-4, "spatial": 3e-2}

# Singular values of the stacked rows count as zero below this fraction of the largest.
ROW_TOLERANCE = 1e-12  # rows in fp64
ROUNDED_ROW_TOLERANCE = 1e-6  # rows that were computed in fp32 or less


@dataclass(frozen=True)
class Target:
    """The change that one concept needs at one layer, with its strength and weight.

    A concept that does not change the layer has factors of rank 0: the outputs for its inputs shall
    stay unchanged.

    Args:
        factors: The concept's change.
        strength: Multiplier at which the change is reproduced.
        weight: The concept's importance; a weight of 0 leaves the concept out.

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
    """A fused change, and how it was computed.

    Args:
        factors: The change in fp64, with a scale of 1; its rank is the sum of the concepts' ranks.
        damping: Absolute damping that was added to the Gram diagonal.
        solver: Solver that was used: ``eigenvalues`` where the Gram matrix was singular.
    """

    factors: LowRank
    damping: float
    solver: Solver


def fuse_from_gram(
    targets: Sequence[Target],
    projected: Sequence[Tensor],
    gram: Gram,
    *,
    damping: float,
    anchor: Anchor = "base",
) -> Fused:
    """Return the fused change from statistics of the inputs.

    To preserve the base on other inputs, add those inputs' Gram matrix to ``gram``.

    Args:
        targets: One target for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
        damping: Relative damping, in units of the mean eigenvalue of ``gram``. At 0 the solution
            that differs least from the anchor is returned.
        anchor: Change that the damping pulls towards: none, or the weighted mean of the changes.

    Raises:
        ValueError: The damping is negative, no concept has a weight, or shapes differ.
    """
    _check(targets, projected, "projected statistic", damping, anchor)
    absolute = damping * gram.mean_eigenvalue
    anchor_weights = _anchor_weights(targets, anchor)
    # The right-hand side of the normal equations, relative to the anchor.
    rhs = torch.cat(
        [
            one.weight * part.to(gram.matrix)
            - anchor_weight * (one.down.to(gram.matrix) @ gram.matrix)
            for one, part, anchor_weight in zip(targets, projected, anchor_weights, strict=True)
            if one.weight
        ]
    )  # (sum of ranks, in)
    correction, solver = _solve_damped(rhs, gram.matrix, absolute, gram.zero_below)
    return Fused(_assembled(targets, anchor_weights, correction), absolute, solver)


def fuse_from_rows(
    targets: Sequence[Target],
    rows: Sequence[Tensor],
    *,
    damping: float,
    anchor: Anchor = "base",
    prior: Tensor | None = None,
    even: bool = False,
) -> Fused:
    """Return the fused change from the input rows themselves, for layers with few of them.

    The solution is that of ``fuse_from_gram``. With fewer rows than the layer is wide, and without
    damping, it avoids the loss of precision from squaring the inputs.

    Args:
        targets: One target for each concept.
        rows: ``(row, in)`` for each concept.
        damping: Relative damping, in units of the mean eigenvalue of the Gram matrix.
        anchor: Change that the damping pulls towards: none, or the weighted mean of the changes.
        prior: ``(row, in)``, inputs on which nothing shall change.
        even: Whether each concept's rows, and the prior's, count by their mean, so that a concept
            with more rows does not weigh more.

    Raises:
        ValueError: The damping is negative, no concept has a weight, or shapes differ.
    """
    _check(targets, rows, "set of rows", damping, anchor)
    anchor_weights = _anchor_weights(targets, anchor)
    blocks = _blocks(targets, rows, prior, even)
    x = torch.cat(blocks)  # (row, in)
    absolute = damping * float(x.square().sum()) / x.shape[1]
    rhs = []
    for index, (one, anchor_weight) in enumerate(zip(targets, anchor_weights, strict=True)):
        if one.weight:
            down = one.down.to(x)
            own = [
                down @ block.mT if index == other else down.new_zeros(len(down), len(block))
                for other, block in enumerate(blocks)
            ]
            rhs.append(torch.cat(own, 1) - anchor_weight * (down @ x.mT))
    if absolute > 0 and len(x) <= x.shape[1]:
        dual, solver = _solve_damped(torch.cat(rhs), x @ x.mT, absolute)
        correction = dual @ x
    elif absolute > 0:
        correction, solver = _solve_damped(torch.cat(rhs) @ x, x.mT @ x, absolute)
    else:
        given = [*rows] if prior is None else [*rows, prior]
        rounded = any(block.dtype != torch.float64 for block in given)
        tolerance = ROUNDED_ROW_TOLERANCE if rounded else ROW_TOLERANCE
        correction = torch.cat(rhs) @ torch.linalg.pinv(x, rtol=tolerance).mT
        solver = "eigenvalues"
    return Fused(_assembled(targets, anchor_weights, correction), absolute, solver)


def statistics_of_rows(
    targets: Sequence[Target],
    rows: Sequence[Tensor],
    *,
    prior: Tensor | None = None,
    even: bool = False,
) -> tuple[Gram, list[Tensor]]:
    """Return the Gram matrix and projections that ``fuse_from_gram`` takes, from input rows.

    Args:
        targets: One target for each concept.
        rows: ``(row, in)`` for each concept.
        prior: ``(row, in)``, inputs on which nothing shall change; they are added to the Gram.
        even: Whether each concept's rows, and the prior's, count by their mean.

    Returns:
        The sum of the concepts' Gram matrices times their weights, and ``(rank, in)`` for each
        concept, unweighted.
    """
    x = torch.cat(_blocks(targets, rows, prior, even))
    matrix = x.mT @ x
    rounded = any(block.dtype != torch.float64 for block in rows)
    projected = [
        (one.down @ own.double().mT) @ own.double() / (max(1, len(own)) if even else 1)
        for one, own in zip(targets, rows, strict=True)
    ]
    return Gram(matrix, len(x), float(matrix.trace()), x.shape[1], rounded), projected


def span_basis(downs: Sequence[Tensor]) -> Tensor:
    """Return orthonormal rows that span the rows of every ``down``, ``(span, in)`` in fp64.

    Layers too wide for an ``(in, in)`` matrix use it: statistics of the inputs within this span are
    ``(span, span)``, and the best change whose ``down`` lies in the span follows from them. That
    change is the optimum if the inputs lie in the span; otherwise it fits less well than the full
    form.

    Args:
        downs: ``(rank, in)`` each.

    Note:
        SSR-Merge damps in the coordinates of the stacked rows. An orthonormal basis damps the
        change itself, independent of the scale of the factors.

    Reference: SSR-Merge, arXiv:2606.10617, restricts the change in the same way.
    """
    stacked = torch.cat([down.flatten(1).double() for down in downs])
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    if not len(values):
        return stacked
    return rows[values > ROUNDED_ROW_TOLERANCE * values[0]].contiguous()


def within_span(target: Target, basis: Tensor) -> Target:
    """Project a target into the basis: its ``down`` becomes ``(rank, span)``."""
    factors = target.factors
    down = target.down.to(basis) @ basis.mT
    inside = LowRank(down, factors.up.flatten(1), factors.alpha)
    return Target(inside, target.strength, target.weight)


def expanded(fused: Fused, basis: Tensor, shape: tuple[int, ...]) -> Fused:
    """Return a change that was fused within a span as a change of the whole layer.

    Args:
        fused: Result of ``fuse_from_gram`` for targets within the span.
        basis: The span, ``(span, in)``.
        shape: Shape of the layer's weight, ``(out, in, ...)``.
    """
    down = fused.factors.down @ basis.to(fused.factors.down)
    factors = _shaped(down, fused.factors.up, shape)
    return Fused(factors, fused.damping, fused.solver)


def _solve_damped(
    rhs: Tensor, gram: Tensor, damping: float, zero_below: float = 0.0
) -> tuple[Tensor, Solver]:
    """Return ``rhs @ (gram + damping)^-1``, with the pseudo-inverse if there is no damping.

    Args:
        rhs: ``(row, in)``.
        gram: ``(in, in)``, positive semi-definite up to rounding.
        damping: Absolute damping, added to the diagonal.
        zero_below: Fraction of the largest eigenvalue below which an eigenvalue counts as zero;
            used without damping only.
    """
    if damping > 0:
        damped = gram.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return torch.cholesky_solve(rhs.mT, factor).mT, "cholesky"
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0.0)  # negative eigenvalues are rounding
    if damping > 0:
        inverse = 1.0 / (values + damping)
    else:
        counts = values > zero_below * values[-1:]
        inverse = torch.where(counts, 1.0 / values, 0.0)
    return (rhs @ vectors * inverse) @ vectors.mT, "eigenvalues"


def _blocks(
    targets: Sequence[Target], rows: Sequence[Tensor], prior: Tensor | None, even: bool
) -> list[Tensor]:
    """Return all input rows in fp64, times the square root of their weight."""
    weights = [one.weight for one in targets]
    if prior is not None:
        rows, weights = [*rows, prior], [*weights, 1.0]
    return [
        x.double() * math.sqrt(weight / max(1, len(x)) if even else weight)
        for x, weight in zip(rows, weights, strict=True)
    ]


def _anchor_weights(targets: Sequence[Target], anchor: Anchor) -> list[float]:
    """Return the multiplier of each concept's change in the anchor; 0 for the base."""
    total = sum(one.weight for one in targets)
    return [one.weight / total if anchor == "average" else 0.0 for one in targets]


def _assembled(
    targets: Sequence[Target], anchor_weights: Sequence[float], correction: Tensor
) -> LowRank:
    """Return the anchor plus the correction as one low-rank change."""
    kept = [pair for pair in zip(targets, anchor_weights, strict=True) if pair[0].weight]
    up = torch.cat([one.up.to(correction) for one, _ in kept], 1)
    down = torch.cat([weight * one.down.to(correction) for one, weight in kept]) + correction
    return _shaped(down, up, targets[0].factors.shape)


def _shaped(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> LowRank:
    rank = down.shape[0]
    return LowRank(down.view(rank, *shape[1:]), up.view(*up.shape, *(1,) * (len(shape) - 2)))


def _check(
    targets: Sequence[Target], given: Sequence[Tensor], what: str, damping: float, anchor: str
) -> None:
    if not any(one.weight > 0 for one in targets):
        raise ValueError(
            "at least one concept must have a weight above 0, "
            f"got {[one.weight for one in targets]}; raise the weight of what shall be fused"
        )
    if len(given) != len(targets):
        raise ValueError(
            f"there must be one {what} for each concept, got {len(given)} for {len(targets)}"
        )
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be 0 or a positive number, got {damping}")
    if anchor not in ("base", "average"):
        raise ValueError(f'anchor must be "base" or "average", got "{anchor}"')
    for one in targets[1:]:
        if one.factors.shape != targets[0].factors.shape:
            raise ValueError(
                "concepts must change the same layer, "
                f"got shapes {targets[0].factors.shape} and {one.factors.shape}; "
                "fuse LoRAs of one architecture"
            )
