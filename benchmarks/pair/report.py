"""Write the markdown page and the JSON of the pair study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..intervals import wilson
from .curves import compare, rates

AIMS = {"style": 0.7, "object": 0.8}
_HEADER = [
    "| style, pairs | backgrounds | scale | new style | object kept |",
    "| --- | --- | --- | --- | --- |",
]
_CURVES = [
    "| style, pairs | arm | learning rate | strength: style / object |",
    "| --- | --- | --- | --- |",
]
_CLAIM = [
    "| style, pairs | at style rate | ours | plain LoRA | difference | 95 % interval |",
    "| --- | --- | --- | --- | --- | --- |",
]


def write_report(path: Path, metadata: dict, cells: dict[str, dict]) -> None:
    """Write the page ``pair.md`` and the data ``pair.json``."""
    summary = {name: _summary(cell) for name, cell in cells.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(metadata, summary), encoding="utf-8")
    result = {"facts": metadata, "cells": summary}
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _summary(cell: dict) -> dict:
    ours = np.array(cell["guidance"]["flags"], dtype=bool)
    baseline = np.array(cell["lora"]["flags"], dtype=bool)
    chosen = list(cell["guidance"]["strengths"]).index(cell["scale"])
    summary = {
        "backgrounds": cell["backgrounds"],
        "scale": cell["scale"],
        "at_scale": _rates(ours[:, chosen]),
        "claim": compare(ours, baseline),
    }
    for arm, flags in (("guidance", ours), ("lora", baseline)):
        curve = [
            [strength, *row]
            for strength, row in zip(cell[arm]["strengths"], rates(flags).tolist(), strict=True)
        ]
        summary[arm] = {"rate": cell[arm]["rate"], "curve": curve}
    if "everywhere" in cell:
        summary["everywhere"] = {
            ground: _rates(np.array(flags, dtype=bool))
            for ground, flags in cell["everywhere"].items()
        }
    return summary


def _rates(flags: np.ndarray) -> dict[str, dict[str, float]]:
    """Return style and object rate of flags ``(training, picture, 2)`` with Wilson intervals."""
    flat = flags.reshape(-1, 2)
    found = {}
    for column, name in enumerate(("style", "object")):
        right = int(flat[:, column].sum())
        low, high = wilson(right, len(flat))
        found[name] = {"rate": right / len(flat), "count": len(flat), "low": low, "high": high}
    return found


def _cells(found: dict[str, dict[str, float]]) -> str:
    return " | ".join(
        f"{found[name]['rate']:.2f} ({found[name]['low']:.2f}–{found[name]['high']:.2f})"
        for name in AIMS
    )


def _page(metadata: dict, summary: dict[str, dict]) -> str:
    lines = ["# Pair Customization on the toy base", ""]
    lines += [f"{name}: `{value}`  " for name, value in metadata.items()]
    lines += [
        "",
        "Style counts where object and ground both carry it; pictures show objects that no pair",
        f"shows. Aims: style {AIMS['style']:.0%}, object {AIMS['object']:.0%} at one scale.",
        "Intervals of rates are Wilson's over all trainings' pictures.",
        "",
        *_HEADER,
    ]
    for name, cell in summary.items():
        lines.append(
            f"| {name} | {cell['backgrounds']} | {cell['scale']} | {_cells(cell['at_scale'])} |"
        )
        for ground, found in cell.get("everywhere", {}).items():
            lines.append(f"| {name} | {ground} | {cell['scale']} | {_cells(found)} |")
    lines += ["", "Content kept at one style rate, against a plain LoRA; bootstrap over trainings,"]
    lines += ["then pictures:", "", *_CLAIM]
    for name, cell in summary.items():
        claim = cell["claim"]
        lines.append(
            f"| {name} | {claim['style_rate']:.2f} | {claim['ours']:.2f} | {claim['baseline']:.2f}"
            f" | {claim['difference']:+.2f} | {claim['low']:+.2f} to {claim['high']:+.2f} |"
        )
    lines += ["", "The curves:", "", *_CURVES]
    for name, cell in summary.items():
        for arm in ("guidance", "lora"):
            points = ", ".join(f"{s:g}: {a:.2f} / {b:.2f}" for s, a, b in cell[arm]["curve"])
            lines.append(f"| {name} | {arm} | {cell[arm]['rate']:g} | {points} |")
    return "\n".join(lines) + "\n"
