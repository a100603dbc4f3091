"""Solve the fusion of every layer in closed form, and measure the loss of every concept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lora_ops import (
    STAGE_DAMPING,
    Fused,
    Gram,
    LowRank,
    Target,
    concept_error,
    damped_objective,
    expanded,
    fuse_from_gram,
    fuse_from_rows,
    norm,
    plain_average,
    refactored,
    statistics_of_rows,
    truncated,
    within_span,
)
from ...lora_ops.fusion import Anchor
from .layers import FusedLayer
from .report import LayerResult
from .statistics import Member, StageStatistics


@dataclass(frozen=True)
class SolverOptions:
    """Options with which layers are solved.

    Args:
        anchor: Change that the damping pulls towards.
        damping: Relative damping; 0 is the stage's default, a negative number none at all.
        rank: Maximum rank of every layer; 0 keeps every rank.
        energy: Fraction of every layer's energy to keep; 1 keeps all.
    """

    anchor: Anchor
    damping: float
    rank: int
    energy: float

    @property
    def limits_rank(self) -> bool:
        """Return whether the rank of a fused layer may be reduced."""
        return self.rank > 0 or self.energy < 1

    def damping_of(self, stage: str) -> float:
        """Return the relative damping of a stage."""
        if self.damping == 0:
            return STAGE_DAMPING[stage]
        return max(0.0, self.damping)


def solve_from_grams(
    layers: Sequence[FusedLayer],
    members: Sequence[Member],
    statistics: StageStatistics,
    spans: Mapping[str, Tensor],
    solving: SolverOptions,
    on_layer: Callable[[], None],
) -> tuple[dict[str, LowRank], list[LayerResult]]:
    """Return a stage's fused changes by layer name and the layers' results, from Gram matrices.

    Args:
        layers: Layers of the stage.
        members: Concepts, without the prior.
        statistics: Statistics of the stage.
        spans: Span of the concepts' factors at each wide site.
        solving: Options of the solver.
        on_layer: Function that is called after every layer.
    """
    changes, results = {}, []
    for layer in layers:
        gram, span = statistics.grams[layer.site], spans.get(layer.site)
        targets = [_target(layer, member) for member in members]
        projected = [
            statistics.by_member[member.digest].projected.get(
                layer.name, torch.zeros(0, layer.width, dtype=torch.float64)
            )
            for member in members
        ]
        solved = targets
        if span is not None:
            solved = [within_span(one, span) for one in targets]
            projected = [one @ span.mT for one in projected]
        fused = fuse_from_gram(
            solved, projected, gram, damping=solving.damping_of(layer.stage), anchor=solving.anchor
        )
        kept, cut = _limited(fused, solved, projected, gram, solving)
        if span is not None:
            kept = expanded(Fused(kept, fused.damping, fused.solver), span, layer.shape).factors
        samples = [
            statistics.by_member[member.digest].samples.get(layer.site) for member in members
        ]
        changes[layer.name] = _shaped(kept, layer.shape)
        results.append(_result(layer, targets, changes[layer.name], samples, fused, cut))
        on_layer()
    return changes, results


def solve_from_rows(
    layers: Sequence[FusedLayer],
    members: Sequence[Member],
    rows: Mapping[str, Callable[[FusedLayer], Tensor]],
    prior: Callable[[FusedLayer], Tensor] | None,
    solving: SolverOptions,
    on_layer: Callable[[], None],
) -> tuple[dict[str, LowRank], list[LayerResult]]:
    """Return a stage's fused changes by layer name and the layers' results, from all input rows.

    It serves keys and values of cross-attention, which have few input rows.

    Args:
        layers: Layers of the stage.
        members: Concepts, without the prior.
        rows: Functions by the member's digest that return a layer's input rows, ``(row, in)``.
        prior: Function that returns a layer's input rows on which the base's outputs are preserved,
            times the square root of their weight; None for no such rows.
        solving: Options of the solver.
        on_layer: Function that is called after every layer.
    """
    changes, results = {}, []
    for layer in layers:
        targets = [_target(layer, member) for member in members]
        inputs = [rows[member.digest](layer) for member in members]
        prior_inputs = None if prior is None else prior(layer)
        damping = solving.damping_of(layer.stage)
        fused = fuse_from_rows(
            targets, inputs, damping=damping, anchor=solving.anchor, prior=prior_inputs, even=True
        )
        if solving.limits_rank:
            gram, projected = statistics_of_rows(targets, inputs, prior=prior_inputs, even=True)
            kept, cut = _limited(fused, targets, projected, gram, solving)
        else:
            kept, cut = refactored(fused.factors), _TruncationCost()
        changes[layer.name] = _shaped(kept, layer.shape)
        results.append(_result(layer, targets, changes[layer.name], inputs, fused, cut))
        on_layer()
    return changes, results


def _target(layer: FusedLayer, member: Member) -> Target:
    """Return a member's target at a layer; of rank 0 if it does not change the layer."""
    factors = member.factors.get(layer.name)
    if factors is None:
        ones = (1,) * (len(layer.shape) - 2)
        factors = LowRank(torch.zeros(0, *layer.shape[1:]), torch.zeros(layer.shape[0], 0, *ones))
    return Target(factors, member.concept.strength, member.weight)


@dataclass(frozen=True)
class _TruncationCost:
    """The cost of a rank limit.

    Args:
        energy: Fraction of the energy that the limit removes.
        objective: Fusion objective before the limit; None without a limit.
        loss: Increase of the objective.
    """

    energy: float = 0.0
    objective: float | None = None
    loss: float = 0.0


def _limited(
    fused: Fused,
    targets: Sequence[Target],
    projected: Sequence[Tensor],
    gram: Gram,
    solving: SolverOptions,
) -> tuple[LowRank, _TruncationCost]:
    """Return the change at its exact rank or at the allowed one, and the cost of the rank limit."""
    if not solving.limits_rank:
        return refactored(fused.factors), _TruncationCost()
    cuts = []
    if solving.rank:
        cuts.append(truncated(fused.factors, gram.matrix, damping=fused.damping, rank=solving.rank))
    if solving.energy < 1:
        cuts.append(
            truncated(fused.factors, gram.matrix, damping=fused.damping, energy=solving.energy)
        )
    cut = min(cuts, key=lambda one: one.factors.rank)
    objective = damped_objective(fused, targets, projected, gram, anchor=solving.anchor)
    return cut.factors, _TruncationCost(1.0 - cut.kept, objective, cut.loss)


def _shaped(factors: LowRank, shape: tuple[int, ...]) -> LowRank:
    rank, ones = factors.rank, (1,) * (len(shape) - 2)
    down = factors.down.float().reshape(rank, *shape[1:])
    return LowRank(down, factors.up.float().reshape(shape[0], rank, *ones), factors.alpha)


def _result(
    layer: FusedLayer,
    targets: Sequence[Target],
    change: LowRank,
    samples: Sequence[Tensor | None],
    fused: Fused,
    cut: _TruncationCost,
) -> LayerResult:
    """Return a layer's result, with the residuals on the samples of the concepts' inputs."""
    average = plain_average(targets)
    residuals: list[float | None] = []
    average_residuals: list[float | None] = []
    for target, rows in zip(targets, samples, strict=True):
        effect = 0.0 if rows is None else concept_error(None, target, rows)
        if rows is None or effect <= 0:
            residuals.append(None)
            average_residuals.append(None)
        else:
            residuals.append(concept_error(change, target, rows) / effect)
            average_residuals.append(concept_error(average, target, rows) / effect)
    return LayerResult(
        name=layer.name,
        stage=layer.stage,
        rank=change.rank,
        norm=norm(change),
        average_norm=norm(average),
        norms=tuple(norm(LowRank(one.down, one.up)) for one in targets),
        residuals=tuple(residuals),
        average_residuals=tuple(average_residuals),
        damping=fused.damping,
        solver=fused.solver,
        cut=cut.energy,
        objective=cut.objective,
        loss=cut.loss,
    )
