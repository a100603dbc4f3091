"""Compare the closed form with the authors' optimiser on the same activations, layer by layer.

The authors' optimiser is rebuilt from its description. It stores activations in fp32, reads them in
chunks of 5,000 rows, and minimises the mean squared error by L-BFGS with strong Wolfe steps: 500
iterations for the text encoder and for keys and values, 50 for all other layers. It keeps the best
iterate.
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

from .arms import with_fusion

ITERATIONS = {"text": 500, "cross": 500, "spatial": 50}
CHUNK = 5000
TIMED = 10  # only the first iterations on the whole weight are timed, which are the cheapest
# Largest ratio of the norm of the closed form's change to that of the optimiser's, by stage.
NORMS = {"text": 1.4, "cross": 1.1, "spatial": 1.1}
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CONCEPTS, RANK = 3, 4
SPECTRUM = 1.0  # singular values of power-law inputs fall as ``k ** -SPECTRUM``
SPAN = "spatial, within the span"
# Stage, width and outputs of one layer of each kind in SD1.5 and SDXL.
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
# Layers of ``WIDE`` for which L-BFGS is also run on the whole weight.
CONTROLS = (("text", 768, 768), ("spatial", 320, 320))
_ROWS = {"text": 176, "cross": 6}
# Number of rows relative to the largest feature map, by width. All concepts' rows together are more
# than the width.
_SHARE = {320: 1.0, 640: 0.25, 1280: 0.0625, 5120: 0.125}
_LEAST = 1e-30  # avoids divisions by a norm of zero


@dataclass(frozen=True)
class Statistics:
    """The statistics from which a layer is solved.

    Args:
        gram: Gram matrix of all concepts' inputs.
        projected: Projected statistics of each concept, ``(rank, in)``.
        span: Basis to which a wide input is reduced; None if it is not reduced.
    """

    gram: Gram
    projected: Sequence[Tensor]
    span: Tensor | None

    @property
    def parts(self) -> list[Tensor]:
        """Return each concept's projected statistics in the coordinates of the Gram matrix."""
        return [one if self.span is None else one @ self.span.mT for one in self.projected]

    @property
    def size(self) -> int:
        """Return the bytes of all statistics."""
        tensors = [self.gram.matrix, *self.projected, *([] if self.span is None else [self.span])]
        return sum(one.nbytes for one in tensors)

    def inside(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets in the coordinates of the statistics."""
        return [one if self.span is None else within_span(one, self.span) for one in targets]


def whole_base(base: Any, concepts: Sequence[Any]) -> list[dict[str, Any]]:
    """Compare both solvers on every changed layer of the toy base, on a fusion's activations."""
    seconds: dict[Any, float] = {}

    def dense(targets: Sequence[Target], rows: Sequence[Tensor], iterations: int) -> float:
        key = targets[0].factors.shape, sum(map(len, rows)), iterations
        if key not in seconds:
            seconds[key] = dense_seconds(targets, rows, iterations)
        return seconds[key]

    return [
        compare(stage, targets, rows, dense)
        for stage, targets, rows in activations(base, concepts)
        if any(bool(one.up.any()) and bool(one.down.any()) for one in targets)
    ]


def activations(base: Any, concepts: Sequence[Any]) -> list[tuple[str, list[Target], list[Tensor]]]:
    """Return stage, targets and all input rows of every layer in a fusion with mode ``paper``."""
    found: list[tuple[str, list[Target], list[Tensor]]] = []
    from_grams, from_rows = fusion_stages.solve_from_grams, fusion_stages.solve_from_rows

    def targets_of(layer: Any, members: Sequence[Any]) -> list[Target]:
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
                found.append((layer.stage, targets_of(layer, members), rows))
            return from_grams(layers, members, *others)

        def keep_rows(layers: Any, members: Any, rows: Any, *others: Any) -> Any:
            for layer in layers:
                own = [rows[member.digest](layer) for member in members]
                found.append((layer.stage, targets_of(layer, members), own))
            return from_rows(layers, members, rows, *others)

        fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = keep_grams, keep_rows
        try:
            with_fusion(base, concepts, "paper")
        finally:
            fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = from_grams, from_rows
    return found


@contextmanager
def _all_rows() -> Iterator[dict[tuple[str, str], list[Tensor]]]:
    """Record every input row that a fusion counts inside the block, by concept and site."""
    seen: dict[tuple[str, str], list[Tensor]] = {}
    attached = InputWatch.attached

    @contextmanager
    def attached_and_kept(self: InputWatch) -> Iterator[None]:
        with ExitStack() as stack:
            for site, module in self.sites.items():

                def keep(module: Any, args: Any, site: str = site) -> None:
                    rows = self.rows_of(site, module, args[0]).float().cpu()
                    seen.setdefault((self.label, site), []).append(rows.clone())

                stack.callback(module.register_forward_pre_hook(keep).remove)
            stack.enter_context(attached(self))
            yield

    InputWatch.attached = attached_and_kept
    try:
        yield seen
    finally:
        InputWatch.attached = attached


def wide_layer(stage: str, width: int, outputs: int, rows: int) -> dict[str, Any]:
    """Compare both solvers on one layer of real width with power-law inputs."""
    generator = torch.Generator().manual_seed(width + outputs)
    count = _ROWS.get(stage) or max(1, round(rows * _SHARE[width]))
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    spread = torch.arange(1, width + 1, dtype=torch.float32) ** -SPECTRUM
    targets, inputs = [], []
    for _ in range(CONCEPTS):
        down = torch.randn(RANK, width, generator=generator) / width**0.5
        up = torch.randn(outputs, RANK, generator=generator) * 0.1
        targets.append(Target(LowRank(down, up)))
        centre = torch.randn(1, width, generator=generator) * 0.5
        inputs.append((torch.randn(count, width, generator=generator) + centre) * spread @ turned)
    found = compare(stage, targets, inputs, dense_seconds)
    if (stage, width, outputs) in CONTROLS:
        started = time.perf_counter()
        whole = lbfgs_on_activations(targets, inputs, ITERATIONS[stage])
        nothing = _error(torch.zeros_like(whole), targets, inputs)
        found["whole"] = {
            "seconds": time.perf_counter() - started,
            "error": _error(whole, targets, inputs) / nothing,
            "norm": float(whole.norm()),
        }
    return {"width": width, "outputs": outputs, "rows": count, **found}


def compare(
    stage: str,
    targets: Sequence[Target],
    rows: Sequence[Tensor],
    dense: Callable[[Sequence[Target], Sequence[Tensor], int], float],
) -> dict[str, Any]:
    """Return objective, norm and seconds of both solvers on one layer, and a curve over damping.

    Args:
        stage: Stage of the layer.
        targets: Targets of the concepts; at least one is not zero.
        rows: Input rows of each concept.
        dense: Function that returns the seconds of the authors' optimiser.
    """
    started = time.perf_counter()
    statistics = statistics_of(targets, rows) if stage != "cross" else None
    change = solve_closed_form(stage, targets, rows, statistics)
    ours = time.perf_counter() - started
    theirs = lbfgs_within_outputs(targets, rows, ITERATIONS[stage])
    seconds = dense(targets, rows, ITERATIONS[stage])
    limit, norm = _error(theirs, targets, rows), float(theirs.norm())
    nothing = _error(torch.zeros_like(theirs), targets, rows)

    def error_and_norm(change: LowRank) -> tuple[float, float]:
        dense = delta(change).flatten(1).float()
        return _error(dense, targets, rows) / nothing, float(dense.norm())

    curve = {}
    for damping in DAMPINGS:
        error, own = error_and_norm(solve_closed_form(stage, targets, rows, statistics, damping))
        curve[f"{damping:g}"] = [error, own / max(norm, _LEAST)]
    error, own = error_and_norm(change)
    matched = None
    if norm > 0:
        given = statistics or statistics_of(targets, rows)
        aimed = NORMS[stage] * norm
        damping = damping_at_norm(given.inside(targets), given.parts, given.gram, aimed)
        matched = [
            damping,
            error_and_norm(solve_closed_form(stage, targets, rows, statistics, damping))[0],
        ]
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
    targets: Sequence[Target], rows: Sequence[Tensor], iterations: int
) -> Tensor:
    """Return the dense change that the authors' recipe reaches, ``(out, in)``, in less time.

    L-BFGS starts at zero, so every gradient and every iterate is in the space of outputs that the
    concepts' own changes reach. In orthonormal coordinates of that space, errors and inner products
    are the same, so L-BFGS takes the same steps except for rounding. Its first trial step differs
    only if the absolute entries of the gradient sum to more than 1, because PyTorch divides the
    step by that sum.
    """
    basis, _ = torch.linalg.qr(torch.cat([one.up for one in targets], 1))  # (out, sum of ranks)
    inside = [Target(LowRank(one.down.float(), (basis.mT @ one.up).float())) for one in targets]
    basis = basis.float()
    return basis @ lbfgs_on_activations(inside, rows, iterations, outputs=len(basis))


def dense_seconds(targets: Sequence[Target], rows: Sequence[Tensor], iterations: int) -> float:
    """Return the seconds of the authors' recipe on the whole weight, from its first iterations."""
    started = time.perf_counter()
    lbfgs_on_activations(targets, rows, TIMED)
    return (time.perf_counter() - started) * iterations / TIMED


def lbfgs_on_activations(
    targets: Sequence[Target],
    rows: Sequence[Tensor],
    iterations: int,
    outputs: int | None = None,
) -> Tensor:
    """Return the dense change that the authors' recipe reaches, ``(out, in)`` in fp32.

    Args:
        targets: Targets of the concepts.
        rows: Input rows of each concept.
        iterations: Largest number of iterations.
        outputs: Number of the layer's outputs over which the error is averaged, if the targets have
            fewer.
    """
    inputs = torch.cat(list(rows))
    target_outputs = torch.cat(
        [x @ one.down.float().mT @ one.up.float().mT for one, x in zip(targets, rows, strict=True)]
    )
    count = len(target_outputs) * (outputs or target_outputs.shape[1])
    change = torch.zeros(target_outputs.shape[1], inputs.shape[1]).requires_grad_()
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
        for x, y in zip(inputs.split(CHUNK), target_outputs.split(CHUNK), strict=True):
            loss = (x @ change.mT - y).square().sum() / count
            loss.backward()
            total += float(loss.detach())
        if total < best_loss:
            best, best_loss = change.detach().clone(), total
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return best


def statistics_of(targets: Sequence[Target], rows: Sequence[Tensor]) -> Statistics:
    """Return a layer's statistics, reduced to the span of all targets if its input is too wide."""
    width = rows[0].shape[1]
    span = span_basis([one.factors.down for one in targets]) if width > WIDEST else None
    stream = GramStream(width, span=span)
    projected = []
    for one, x in zip(targets, rows, strict=True):
        own = ProjectedStream({"layer": one.factors.down}, width=width)
        own.add(x, label="the activations")
        stream.add(x, label="the activations")
        projected.append(own.total()["layer"])
    return Statistics(stream.total(), projected, span)


def solve_closed_form(
    stage: str,
    targets: Sequence[Target],
    rows: Sequence[Tensor],
    statistics: Statistics | None,
    damping: float | None = None,
) -> LowRank:
    """Return the fused change in closed form.

    Args:
        stage: Stage of the layer.
        targets: Targets of the concepts.
        rows: Input rows of each concept.
        statistics: Statistics of the rows; None to solve from the rows themselves.
        damping: Relative damping; the stage's by default.
    """
    damping = STAGE_DAMPING[stage] if damping is None else damping
    if statistics is None:
        return fuse_from_rows(targets, rows, damping=damping).factors
    inside = statistics.inside(targets)
    found = fuse_from_gram(inside, statistics.parts, statistics.gram, damping=damping)
    if statistics.span is None:
        return found.factors
    return expanded(found, statistics.span, targets[0].factors.shape).factors


def _error(change: Tensor, targets: Sequence[Target], rows: Sequence[Tensor]) -> float:
    total = 0.0
    for one, x in zip(targets, rows, strict=True):
        for part in x.split(CHUNK):
            own = part @ one.down.float().mT @ one.up.float().mT
            total += float((part @ change.mT - own).double().square().sum())
    return total
