"""The closed form, layer by layer, and what it leaves of every concept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lora_ops import (
    STAGE_DAMPING,
    Fused,
    Gram,
    LowRank,
    Wanted,
    expanded,
    fuse_from_gram,
    fuse_from_rows,
    plain_average,
    refactored,
    truncated,
    within_span,
)
from ...lora_ops.fusion import Anchor
from .fusion_report import LayerResult
from .fusion_sites import FusedLayer
from .fusion_statistics import Collected, Member


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
                layer.name, torch.zeros(0, len(gram.matrix), dtype=torch.float64)
            )
            for member in members
        ]
        inside = wanted if span is None else [within_span(one, span) for one in wanted]
        fused = fuse_from_gram(
            inside, parts, gram, damping=solving.of(layer.stage), anchor=solving.anchor
        )
        kept, cut = _limited(fused, gram, solving)
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
        # Every concept counts alike, however many rows its prompts have.
        even = [x.double() / math.sqrt(max(1, len(x))) for x in seen]
        kept_apart = None if prior is None else _even(prior(layer))
        damping = solving.of(layer.stage)
        if sum(len(x) for x in even) <= layer.width:
            fused = fuse_from_rows(
                wanted, even, damping=damping, anchor=solving.anchor, prior=kept_apart
            )
        else:
            parts = [(one.down @ x.mT) @ x for one, x in zip(wanted, even, strict=True)]
            gram = _gram(wanted, even, kept_apart, layer.width)
            fused = fuse_from_gram(wanted, parts, gram, damping=damping, anchor=solving.anchor)
        gram = None
        if solving.rank or solving.energy < 1:
            gram = _gram(wanted, even, kept_apart, layer.width)
        kept, cut = _limited(fused, gram, solving)
        changes[layer.name] = _shaped(kept, layer.shape)
        results.append(_result(layer, wanted, changes[layer.name], seen, fused, cut))
        on_layer()
    return changes, results


def _wanted(layer: FusedLayer, member: Member) -> Wanted:
    factors = member.factors.get(layer.name)
    if factors is None:
        ones = (1,) * (len(layer.shape) - 2)
        factors = LowRank(torch.zeros(0, *layer.shape[1:]), torch.zeros(layer.shape[0], 0, *ones))
    return Wanted(factors, member.concept.strength, member.weight)


def _even(rows: Tensor) -> Tensor:
    return rows.double() / math.sqrt(max(1, len(rows)))


def _gram(
    wanted: Sequence[Wanted], rows: Sequence[Tensor], prior: Tensor | None, width: int
) -> Gram:
    blocks = [x * math.sqrt(one.weight) for one, x in zip(wanted, rows, strict=True)]
    x = torch.cat(blocks if prior is None else [*blocks, prior])
    matrix = x.mT @ x
    return Gram(matrix, len(x), float(matrix.trace()), width)


def _limited(fused: Fused, gram: Gram | None, solving: Solving) -> tuple[LowRank, float]:
    """Return the change with no more ranks than it needs or is allowed, and the share cut off."""
    if gram is None or not (solving.rank or solving.energy < 1):
        return refactored(fused.factors), 0.0
    limits = {"rank": solving.rank} if solving.rank else {"energy": solving.energy}
    cut = truncated(fused.factors, gram.matrix, damping=fused.damping, **limits)
    if solving.rank and solving.energy < 1:
        less = truncated(fused.factors, gram.matrix, damping=fused.damping, energy=solving.energy)
        cut = less if less.factors.rank < cut.factors.rank else cut
    return cut.factors, 1.0 - cut.kept


def _shaped(factors: LowRank, shape: tuple[int, ...]) -> LowRank:
    rank, ones = factors.rank, (1,) * (len(shape) - 2)
    down = factors.down.float().reshape(rank, *shape[1:])
    return LowRank(down, factors.up.float().reshape(shape[0], rank, *ones), factors.alpha)


def _result(
    layer: FusedLayer,
    wanted: Sequence[Wanted],
    change: LowRank,
    samples: Sequence[Tensor | None],
    fused: Fused,
    cut: float,
) -> LayerResult:
    average = plain_average(wanted)
    own = [LowRank(one.down, one.up) for one in wanted]
    left, averaged = [], []
    for one, rows in zip(own, samples, strict=True):
        whole = 0.0 if rows is None else _energy(rows, [one])
        known = rows is not None and one.rank > 0 and whole > 0
        left.append(_energy(rows, [change, _negative(one)]) / whole if known else None)
        averaged.append(_energy(rows, [average, _negative(one)]) / whole if known else None)
    return LayerResult(
        name=layer.name,
        stage=layer.stage,
        rank=change.rank,
        norm=_norm(change),
        average_norm=_norm(average),
        norms=tuple(_norm(one) for one in own),
        left=tuple(left),
        left_averaged=tuple(averaged),
        damping=fused.damping,
        solver=fused.solver,
        cut=cut,
    )


def _negative(factors: LowRank) -> LowRank:
    return LowRank(factors.down, -factors.up, factors.alpha)


def _energy(rows: Tensor, changes: Sequence[LowRank]) -> float:
    """Return the squared norm of what several changes together make of input rows."""
    up = torch.cat([one.up.flatten(1).double() * one.scale for one in changes], 1)
    down = torch.cat([one.down.flatten(1).double() for one in changes])
    hidden = rows.double() @ down.mT  # (row, rank)
    return float(((hidden.mT @ hidden) * (up.mT @ up)).sum().clamp(min=0.0))


def _norm(factors: LowRank) -> float:
    if factors.rank == 0:
        return 0.0
    up = factors.up.flatten(1).double() * factors.scale
    down = factors.down.flatten(1).double()
    return float(((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0.0).sqrt())
