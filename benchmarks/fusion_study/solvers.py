"""The closed form and the authors' optimiser on the same activations, layer by layer.

Theirs is rebuilt from its description: activations stored in fp32, read in chunks of 5,000 rows,
L-BFGS with strong Wolfe steps on the mean squared error, 500 iterations for the text encoder and
for keys and values, 50 for all other layers, the best iterate kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from pack.lora_ops import (
    STAGE_DAMPING,
    GramStream,
    LowRank,
    ProjectedStream,
    Wanted,
    damping_at_norm,
    delta,
    fuse_from_gram,
    fuse_from_rows,
)
from torch import Tensor

ITERATIONS = {"text": 500, "cross": 500, "spatial": 50}
CHUNK = 5000
NORMS = {"text": 1.4, "cross": 1.1, "spatial": 1.1}
"""How much larger than theirs the closed form's change may be."""
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
CONCEPTS, RANK = 3, 4
SPECTRUM = 1.0
"""Singular values of power-law inputs fall as ``k ** -SPECTRUM``."""
WIDE = (
    ("text", 768, 768),
    ("cross", 768, 320),
    ("cross", 768, 1280),
    ("cross", 2048, 1280),
    ("spatial", 320, 320),
    ("spatial", 640, 640),
    ("spatial", 1280, 1280),
)
"""Stage, width and outputs of one layer of each kind in SD1.5 and SDXL."""
_ROWS = {"text": 176, "cross": 6}
_SHARE = {320: 1.0, 640: 0.25, 1280: 0.0625}
"""Of the rows of the widest map, by width."""


def whole_base(base: Any, concepts: Sequence[Any]) -> list[dict[str, Any]]:
    """Every layer of the toy base on the very activations of a fusion."""
    return [compared(stage, wanted, rows) for stage, wanted, rows in activations(base, concepts)]


def activations(base: Any, concepts: Sequence[Any]) -> list[tuple[str, list[Wanted], list[Tensor]]]:
    """Stage, wishes and all input rows of every layer, as a fusion of the paper's kind meets them."""
    from pack.nodes.bridge import fusion_activations, fusion_stages

    from .arms import fused

    found: list[tuple[str, list[Wanted], list[Tensor]]] = []
    from_grams, from_rows = fusion_stages.solve_from_grams, fusion_stages.solve_from_rows
    sampled = fusion_activations.SAMPLED_ROWS

    def wishes(layer: Any, members: Sequence[Any]) -> list[Wanted]:
        nothing = LowRank(torch.zeros(0, layer.width), torch.zeros(layer.shape[0], 0))
        return [
            Wanted(member.factors.get(layer.name, nothing), member.concept.strength)
            for member in members
        ]

    def keep_grams(layers: Any, members: Any, collected: Any, *others: Any) -> Any:
        for layer in layers:
            rows = [collected.own[member.digest].samples[layer.site] for member in members]
            found.append((layer.stage, wishes(layer, members), rows))
        return from_grams(layers, members, collected, *others)

    def keep_rows(layers: Any, members: Any, rows: Any, *others: Any) -> Any:
        for layer in layers:
            own = [rows[member.digest](layer) for member in members]
            found.append((layer.stage, wishes(layer, members), own))
        return from_rows(layers, members, rows, *others)

    fusion_activations.SAMPLED_ROWS = 2**40
    fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = keep_grams, keep_rows
    try:
        fused(base, concepts, "paper")
    finally:
        fusion_activations.SAMPLED_ROWS = sampled
        fusion_stages.solve_from_grams, fusion_stages.solve_from_rows = from_grams, from_rows
    return found


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
        wanted.append(Wanted(LowRank(down, up)))
        centre = torch.randn(1, width, generator=generator) * 0.5
        inputs.append((torch.randn(count, width, generator=generator) + centre) * spread @ turned)
    found = compared(stage, wanted, inputs)
    return {"width": width, "outputs": outputs, "rows": count, **found}


def compared(stage: str, wanted: Sequence[Wanted], rows: Sequence[Tensor]) -> dict[str, Any]:
    """Objective, norm and seconds of both on one layer, and a curve over damping."""
    started = time.perf_counter()
    statistics = _statistics(wanted, rows) if stage != "cross" else None
    change = _closed(stage, wanted, rows, statistics, STAGE_DAMPING[stage])
    ours = time.perf_counter() - started
    started = time.perf_counter()
    theirs = lbfgs_on_activations(wanted, rows, ITERATIONS[stage])
    seconds = time.perf_counter() - started
    limit, norm = _error(theirs, wanted, rows), float(theirs.norm())
    nothing = _error(torch.zeros_like(theirs), wanted, rows)
    curve = {}
    for damping in DAMPINGS:
        dense = delta(_closed(stage, wanted, rows, statistics, damping)).float()
        curve[f"{damping:g}"] = [_error(dense, wanted, rows) / nothing, float(dense.norm()) / norm]
    dense = delta(change).float()
    gram, parts = statistics or _statistics(wanted, rows)
    matched = damping_at_norm(wanted, parts, gram, NORMS[stage] * norm)
    equal = delta(_closed(stage, wanted, rows, statistics, matched)).float()
    return {
        "stage": stage,
        "matched": [matched, _error(equal, wanted, rows) / nothing],
        "seconds": [ours, seconds],
        "error": [_error(dense, wanted, rows) / nothing, limit / nothing],
        "norm": [float(dense.norm()), norm],
        "curve": curve,
    }


def lbfgs_on_activations(
    wanted: Sequence[Wanted], rows: Sequence[Tensor], iterations: int
) -> Tensor:
    """The dense change that the authors' recipe reaches, ``(out, in)`` in fp32."""
    inputs = torch.cat(list(rows))
    targets = torch.cat(
        [x @ one.down.float().mT @ one.up.float().mT for one, x in zip(wanted, rows, strict=True)]
    )
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
            loss = (x @ change.mT - y).square().sum() / targets.numel()
            loss.backward()
            total += float(loss.detach())
        if total < best_loss:
            best, best_loss = change.detach().clone(), total
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return best


def _statistics(wanted: Sequence[Wanted], rows: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    stream = GramStream(rows[0].shape[1])
    parts = []
    for one, x in zip(wanted, rows, strict=True):
        own = ProjectedStream({"layer": one.factors.down}, width=x.shape[1])
        own.add(x, label="the activations")
        stream.add(x, label="the activations")
        parts.append(own.total()["layer"])
    return stream.total(), parts


def _closed(
    stage: str,
    wanted: Sequence[Wanted],
    rows: Sequence[Tensor],
    statistics: tuple[Any, list[Tensor]] | None,
    damping: float,
) -> LowRank:
    if statistics is None:
        return fuse_from_rows(wanted, rows, damping=damping).factors
    gram, parts = statistics
    return fuse_from_gram(wanted, parts, gram, damping=damping).factors


def _error(change: Tensor, wanted: Sequence[Wanted], rows: Sequence[Tensor]) -> float:
    total = 0.0
    for one, x in zip(wanted, rows, strict=True):
        for part in x.split(CHUNK):
            own = part @ one.down.float().mT @ one.up.float().mT
            total += float((part @ change.mT - own).double().square().sum())
    return total
