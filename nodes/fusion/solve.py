"""The closed form, layer by layer, and what it leaves of every concept."""

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
from .statistics import Collected, Member


@dataclass(frozen=True)
class Solving:
    """How layers are solved.

    Args:
        anchor: What the damping pulls to.
        damping: Relative; 0 is the stage's default, a negative number none at all.
        rank: Of every layer at most; 0 keeps all.
        energy: Share of every layer's energy to keep; 1 keeps all.
    """

    anchor: Anchor
    damping: float
    rank: int
    energy: float

    @property
    def limited(self) -> bool:
        """Return whether ranks are left out."""
        return self.rank > 0 or self.energy < 1

    def of(self, stage: str) -> float:
        """Return the relative damping of a stage."""
        if self.damping == 0:
            return STAGE_DAMPING[stage]
        return max(0.0, self.damping)


def solve_from_grams(
    layers: Sequence[FusedLayer],
    members: Sequence[Member],
    collected: Collected,
    spans: Mapping[str, Tensor],
    solving: Solving,
    on_layer: Callable[[], None],
) -> tuple[dict[str, LowRank], list[LayerResult]]:
    """Return the fused changes of a stage by layer name, and what is to be said of each layer.

    Args:
        layers: Of the stage.
        members: The concepts, without the prior.
        collected: The stage's statistics.
        spans: Of its wide sites.
        solving: How.
        on_layer: Called after every layer.
    """
    changes, results = {}, []
    for layer in layers:
        gram, span = collected.grams[layer.site], spans.get(layer.site)
        wanted = [_wanted(layer, member) for member in members]
        parts = [
            collected.own[member.digest].projected.get(
                layer.name, torch.zeros(0, layer.width, dtype=torch.float64)
            )
            for member in members
        ]
        inside = wanted
        if span is not None:
            inside = [within_span(one, span) for one in wanted]
            parts = [part @ span.mT for part in parts]
        fused = fuse_from_gram(
            inside, parts, gram, damping=solving.of(layer.stage), anchor=solving.anchor
        )
        kept, cut = _limited(fused, inside, parts, gram, solving)
        if span is not None:
            kept = expanded(Fused(kept, fused.damping, fused.solver), span, layer.shape).factors
        samples = [collected.own[member.digest].samples.get(layer.site) for member in members]
        changes[layer.name] = _shaped(kept, layer.shape)
        results.append(_result(layer, wanted, changes[layer.name], samples, fused, cut))
        on_layer()
    return changes, results


def solve_from_rows(
    layers: Sequence[FusedLayer],
    members: Sequence[Member],
    rows: Mapping[str, Callable[[FusedLayer], Tensor]],
    prior: Callable[[FusedLayer], Tensor] | None,
    solving: Solving,
    on_layer: Callable[[], None],
) -> tuple[dict[str, LowRank], list[LayerResult]]:
    """Return the same from the inputs themselves: for keys and values, which see few of them.

    Args:
        layers: Of the stage.
        members: The concepts, without the prior.
        rows: Gives a layer's input rows ``(row, in)``, by the member's digest.
        prior: Gives those on which nothing shall change, times the root of their weight.
        solving: How.
        on_layer: Called after every layer.
    """
    changes, results = {}, []
    for layer in layers:
        wanted = [_wanted(layer, member) for member in members]
        seen = [rows[member.digest](layer) for member in members]
        kept_apart = None if prior is None else prior(layer)
        damping = solving.of(layer.stage)
        fused = fuse_from_rows(
            wanted, seen, damping=damping, anchor=solving.anchor, prior=kept_apart, even=True
        )
        if solving.limited:
            gram, parts = statistics_of_rows(wanted, seen, prior=kept_apart, even=True)
            kept, cut = _limited(fused, wanted, parts, gram, solving)
        else:
            kept, cut = refactored(fused.factors), _Cut()
        changes[layer.name] = _shaped(kept, layer.shape)
        results.append(_result(layer, wanted, changes[layer.name], seen, fused, cut))
        on_layer()
    return changes, results


def _wanted(layer: FusedLayer, member: Member) -> Target:
    factors = member.factors.get(layer.name)
    if factors is None:
        ones = (1,) * (len(layer.shape) - 2)
        factors = LowRank(torch.zeros(0, *layer.shape[1:]), torch.zeros(layer.shape[0], 0, *ones))
    return Target(factors, member.concept.strength, member.weight)


@dataclass(frozen=True)
class _Cut:
    """What a limit on the rank did: the share of the energy cut off, and the objective's loss."""

    energy: float = 0.0
    objective: float | None = None
    loss: float = 0.0


def _limited(
    fused: Fused, wanted: Sequence[Target], parts: Sequence[Tensor], gram: Gram, solving: Solving
) -> tuple[LowRank, _Cut]:
    """Return the change with no more ranks than it needs or is allowed, and what that costs."""
    if not solving.limited:
        return refactored(fused.factors), _Cut()
    limits = {"rank": solving.rank} if solving.rank else {"energy": solving.energy}
    cut = truncated(fused.factors, gram.matrix, damping=fused.damping, **limits)
    if solving.rank and solving.energy < 1:
        less = truncated(fused.factors, gram.matrix, damping=fused.damping, energy=solving.energy)
        cut = less if less.factors.rank < cut.factors.rank else cut
    objective = damped_objective(fused, wanted, parts, gram, anchor=solving.anchor)
    return cut.factors, _Cut(1.0 - cut.kept, objective, cut.loss)


def _shaped(factors: LowRank, shape: tuple[int, ...]) -> LowRank:
    rank, ones = factors.rank, (1,) * (len(shape) - 2)
    down = factors.down.float().reshape(rank, *shape[1:])
    return LowRank(down, factors.up.float().reshape(shape[0], rank, *ones), factors.alpha)


def _result(
    layer: FusedLayer,
    wanted: Sequence[Target],
    change: LowRank,
    samples: Sequence[Tensor | None],
    fused: Fused,
    cut: _Cut,
) -> LayerResult:
    average = plain_average(wanted)
    left, averaged = [], []
    for one, rows in zip(wanted, samples, strict=True):
        whole = 0.0 if rows is None else concept_error(None, one, rows)
        known = rows is not None and whole > 0
        left.append(concept_error(change, one, rows) / whole if known else None)
        averaged.append(concept_error(average, one, rows) / whole if known else None)
    return LayerResult(
        name=layer.name,
        stage=layer.stage,
        rank=change.rank,
        norm=norm(change),
        average_norm=norm(average),
        norms=tuple(norm(LowRank(one.down, one.up)) for one in wanted),
        left=tuple(left),
        left_averaged=tuple(averaged),
        damping=fused.damping,
        solver=fused.solver,
        cut=cut.energy,
        objective=cut.objective,
        loss=cut.loss,
    )
