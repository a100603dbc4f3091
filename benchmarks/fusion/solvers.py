"""The closed form and the authors' optimiser on the same activations, layer by layer.

Theirs is rebuilt from its description: activations stored in fp32, read in chunks of 5,000 rows,
L-BFGS with strong Wolfe steps on the mean squared error, 500 iterations for the text encoder and
for keys and values, 50 for all other layers, the best iterate kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pack.lora_ops import (
    STAGE_DAMPING,
    Gram,
    GramStream,
    LowRank,
    ProjectedStream,
    Target,
    damping_at_norm,
    delta,
    expanded,
    fuse_from_gram,
    fuse_from_rows,
    span_basis,
    within_span,
)
from pack.nodes.fusion import stages as fusion_stages
from pack.nodes.fusion.activations import InputWatch
from pack.nodes.fusion.layers import WIDEST
from torch import Tensor

from .arms import fused

ITERATIONS = {"text": 500, "cross": 500, "spatial": 50}
CHUNK = 5000
TIMED = 10
"""Dense iterations that are timed, the first ones; these are the cheapest."""
NORMS = {"text": 1.4, "cross": 1.1, "spatial": 1.1}
"""How much larger than theirs the closed form's change may be."""
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CONCEPTS, RANK = 3, 4
SPECTRUM = 1.0
"""Singular values of power-law inputs fall as ``k ** -SPECTRUM``."""
SPAN = "spatial, within the span"
WIDE = (
    ("text", 768, 768),
    ("text", 1280, 1280),
    ("cross", 768, 320),
    ("cross", 768, 640),
    ("cross", 768, 1280),
    ("cross", 2048, 640),
    ("cross", 2048, 1280),
    ("spatial", 320, 320),
    ("spatial", 640, 640),
    ("spatial", 1280, 1280),
    ("spatial", 1280, 10240),
    ("spatial", 5120, 1280),
)
"""Stage, width and outputs of one layer of each kind in SD1.5 and SDXL."""
CONTROLS = (("text", 768, 768), ("spatial", 320, 320))
"""Those of them whose L-BFGS is run on the whole weight too."""
_ROWS = {"text": 176, "cross": 6}
_SHARE = {320: 1.0, 640: 0.25, 1280: 0.0625, 5120: 0.125}
"""Of the rows of the widest map, by width; more than the width in all."""
_LEAST = 1e-30


@dataclass(frozen=True)
class Statistics:
    """What a layer is solved from.

    Args:
        gram: Of all concepts' inputs.
        projected: Each concept's, ``(rank, in)``.
        span: The rows within whose span a wide input is seen; else None.
    """

    gram: Gram
    projected: Sequence[Tensor]
    span: Tensor | None

    @property
    def parts(self) -> list[Tensor]:
        """Each concept's projected statistics in the coordinates of the Gram."""
        return [one if self.span is None else one @ self.span.mT for one in self.projected]

    @property
    def size(self) -> int:
        """Bytes of all."""
        tensors = [self.gram.matrix, *self.projected, *([] if self.span is None else [self.span])]
        return sum(one.nbytes for one in tensors)

    def inside(self, wanted: Sequence[Target]) -> list[Target]:
        """The wishes in the coordinates of the statistics."""
        return [one if self.span is None else within_span(one, self.span) for one in wanted]


def whole_base(base: Any, concepts: Sequence[Any]) -> list[dict[str, Any]]:
    """Every layer of the toy base that changes, on the very activations of a fusion."""
    seconds: dict[Any, float] = {}

    def dense(wanted: Sequence[Target], rows: Sequence[Tensor], iterations: int) -> float:
        key = wanted[0].factors.shape, sum(map(len, rows)), iterations
        if key not in seconds:
            seconds[key] = dense_seconds(wanted, rows, iterations)
        return seconds[key]

    return [
        compared(stage, wanted, rows, dense)
        for stage, wanted, rows in activations(base, concepts)
        if any(bool(one.up.any()) and bool(one.down.any()) for one in wanted)
    ]


def activations(base: Any, concepts: Sequence[Any]) -> list[tuple[str, list[Target], list[Tensor]]]:
    """Stage, wishes and all input rows of every layer, as a fusion of the paper's kind meets them."""
    found: list[tuple[str, list[Target], list[Tensor]]] = []
    from_grams, from_rows = fusion_stages.solve_from_grams, fusion_stages.solve_from_rows

    def wishes(layer: Any, members: Sequence[Any]) -> list[Target]:
        ones = (1,) * (len(layer.shape) - 2)
        nothing = LowRank(torch.zeros(0, *layer.shape[1:]), torch.zeros(layer.shape[0], 0, *ones))
        return [
            Target(member.factors.get(layer.name, nothing), member.concept.strength)
            for member in members
        ]

    with _all_rows() as seen:

        def keep_grams(layers: Any, members: Any, *others: Any) -> Any:
            for layer in layers:
                rows = [torch.cat(seen[member.label, layer.site]) for member in members]
                found.append((layer.stage, wishes(layer, members), rows))
            return from_grams(layers, members, *others)

        def keep_rows(layers: Any, members: Any, rows: Any, *others: Any) -> Any:
            for layer in layers:
                own = [rows[member.digest](layer) for member in members]
                found.append((layer.stage, wishes(layer, members), own))
            return from_rows(layers, members, rows, *others)

        fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = keep_grams, keep_rows
        try:
            fused(base, concepts, "paper")
        finally:
            fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = from_grams, from_rows
    return found


@contextmanager
def _all_rows() -> Iterator[dict[tuple[str, str], list[Tensor]]]:
    """Keep every input row that fusion counts inside the block, by concept and site."""
    seen: dict[tuple[str, str], list[Tensor]] = {}
    attached = InputWatch.attached

    @contextmanager
    def attached_too(self: InputWatch) -> Iterator[None]:
        with ExitStack() as stack:
            for site, module in self.sites.items():

                def keep(module: Any, args: Any, site: str = site) -> None:
                    rows = self.rows_of(site, module, args[0]).float().cpu()
                    seen.setdefault((self.label, site), []).append(rows.clone())

                stack.callback(module.register_forward_pre_hook(keep).remove)
            stack.enter_context(attached(self))
            yield

    InputWatch.attached = attached_too
    try:
        yield seen
    finally:
        InputWatch.attached = attached


def wide_layer(stage: str, width: int, outputs: int, rows: int) -> dict[str, Any]:
    """One layer of real width on power-law inputs."""
    generator = torch.Generator().manual_seed(width + outputs)
    count = _ROWS.get(stage) or max(1, round(rows * _SHARE[width]))
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    spread = torch.arange(1, width + 1, dtype=torch.float32) ** -SPECTRUM
    wanted, inputs = [], []
    for _ in range(CONCEPTS):
        down = torch.randn(RANK, width, generator=generator) / width**0.5
        up = torch.randn(outputs, RANK, generator=generator) * 0.1
        wanted.append(Target(LowRank(down, up)))
        centre = torch.randn(1, width, generator=generator) * 0.5
        inputs.append((torch.randn(count, width, generator=generator) + centre) * spread @ turned)
    found = compared(stage, wanted, inputs, dense_seconds)
    if (stage, width, outputs) in CONTROLS:
        started = time.perf_counter()
        whole = lbfgs_on_activations(wanted, inputs, ITERATIONS[stage])
        nothing = _error(torch.zeros_like(whole), wanted, inputs)
        found["whole"] = {
            "seconds": time.perf_counter() - started,
            "error": _error(whole, wanted, inputs) / nothing,
            "norm": float(whole.norm()),
        }
    return {"width": width, "outputs": outputs, "rows": count, **found}


def compared(
    stage: str,
    wanted: Sequence[Target],
    rows: Sequence[Tensor],
    dense: Callable[[Sequence[Target], Sequence[Tensor], int], float],
) -> dict[str, Any]:
    """Objective, norm and seconds of both on one layer, and a curve over damping.

    Args:
        stage: Of the layer.
        wanted: One for each concept, not all of them nothing.
        rows: Of each concept's inputs.
        dense: Gives the seconds of their optimiser.
    """
    started = time.perf_counter()
    statistics = statistics_of(wanted, rows) if stage != "cross" else None
    change = closed(stage, wanted, rows, statistics)
    ours = time.perf_counter() - started
    theirs = lbfgs_within_outputs(wanted, rows, ITERATIONS[stage])
    seconds = dense(wanted, rows, ITERATIONS[stage])
    limit, norm = _error(theirs, wanted, rows), float(theirs.norm())
    nothing = _error(torch.zeros_like(theirs), wanted, rows)

    def measured(change: LowRank) -> tuple[float, float]:
        dense = delta(change).flatten(1).float()
        return _error(dense, wanted, rows) / nothing, float(dense.norm())

    curve = {}
    for damping in DAMPINGS:
        error, own = measured(closed(stage, wanted, rows, statistics, damping))
        curve[f"{damping:g}"] = [error, own / max(norm, _LEAST)]
    error, own = measured(change)
    matched = None
    if norm > 0:
        given = statistics or statistics_of(wanted, rows)
        aimed = NORMS[stage] * norm
        damping = damping_at_norm(given.inside(wanted), given.parts, given.gram, aimed)
        matched = [damping, measured(closed(stage, wanted, rows, statistics, damping))[0]]
    in_span = statistics is not None and statistics.span is not None
    return {
        "stage": SPAN if in_span else stage,
        "matched": matched,
        "seconds": [ours, seconds],
        "error": [error, limit / nothing],
        "norm": [own, norm],
        "curve": curve,
    }


def lbfgs_within_outputs(
    wanted: Sequence[Target], rows: Sequence[Tensor], iterations: int
) -> Tensor:
    """The dense change that the authors' recipe reaches, ``(out, in)``, found in less time.

    From no change on, every gradient and so every iterate lies in the space of outputs that the
    concepts' own changes reach. In orthonormal coordinates of that space errors and inner products
    are the same, and but for rounding L-BFGS goes the same way. Only where the gradient's entries
    sum to more than 1 its first trial step is longer: PyTorch divides it by that sum.
    """
    basis, _ = torch.linalg.qr(torch.cat([one.up for one in wanted], 1))  # (out, sum of ranks)
    inside = [Target(LowRank(one.down.float(), (basis.mT @ one.up).float())) for one in wanted]
    basis = basis.float()
    return basis @ lbfgs_on_activations(inside, rows, iterations, outputs=len(basis))


def dense_seconds(wanted: Sequence[Target], rows: Sequence[Tensor], iterations: int) -> float:
    """Seconds of their recipe on the whole weight, from its first iterations."""
    started = time.perf_counter()
    lbfgs_on_activations(wanted, rows, TIMED)
    return (time.perf_counter() - started) * iterations / TIMED


def lbfgs_on_activations(
    wanted: Sequence[Target],
    rows: Sequence[Tensor],
    iterations: int,
    outputs: int | None = None,
) -> Tensor:
    """The dense change that the authors' recipe reaches, ``(out, in)`` in fp32.

    Args:
        wanted: One for each concept.
        rows: Of each concept's inputs.
        iterations: At most.
        outputs: Of the layer, where the wishes have fewer: the error is the mean over all.
    """
    inputs = torch.cat(list(rows))
    targets = torch.cat(
        [x @ one.down.float().mT @ one.up.float().mT for one, x in zip(wanted, rows, strict=True)]
    )
    count = len(targets) * (outputs or targets.shape[1])
    change = torch.zeros(targets.shape[1], inputs.shape[1]).requires_grad_()
    best, best_loss = change.detach().clone(), float("inf")
    optimizer = torch.optim.LBFGS(
        [change],
        max_iter=iterations,
        history_size=25,
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        nonlocal best, best_loss
        optimizer.zero_grad()
        total = 0.0
        for x, y in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
            loss = (x @ change.mT - y).square().sum() / count
            loss.backward()
            total += float(loss.detach())
        if total < best_loss:
            best, best_loss = change.detach().clone(), total
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return best


def statistics_of(wanted: Sequence[Target], rows: Sequence[Tensor]) -> Statistics:
    """A layer's statistics, within the span of all wishes where its input is too wide."""
    width = rows[0].shape[1]
    span = span_basis([one.factors.down for one in wanted]) if width > WIDEST else None
    stream = GramStream(width, span=span)
    projected = []
    for one, x in zip(wanted, rows, strict=True):
        own = ProjectedStream({"layer": one.factors.down}, width=width)
        own.add(x, label="the activations")
        stream.add(x, label="the activations")
        projected.append(own.total()["layer"])
    return Statistics(stream.total(), projected, span)


def closed(
    stage: str,
    wanted: Sequence[Target],
    rows: Sequence[Tensor],
    statistics: Statistics | None,
    damping: float | None = None,
) -> LowRank:
    """The fused change in closed form.

    Args:
        stage: Of the layer.
        wanted: One for each concept.
        rows: Of each concept's inputs.
        statistics: Of these; None to solve from the rows themselves.
        damping: Relative; by default the stage's.
    """
    damping = STAGE_DAMPING[stage] if damping is None else damping
    if statistics is None:
        return fuse_from_rows(wanted, rows, damping=damping).factors
    inside = statistics.inside(wanted)
    found = fuse_from_gram(inside, statistics.parts, statistics.gram, damping=damping)
    if statistics.span is None:
        return found.factors
    return expanded(found, statistics.span, wanted[0].factors.shape).factors


def _error(change: Tensor, wanted: Sequence[Target], rows: Sequence[Tensor]) -> float:
    total = 0.0
    for one, x in zip(wanted, rows, strict=True):
        for part in x.split(CHUNK):
            own = part @ one.down.float().mT @ one.up.float().mT
            total += float((part @ change.mT - own).double().square().sum())
    return total
