"""Write the markdown page and the JSON of the study of regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..intervals import difference, wilson
from .adapters import FULL, LEAK, LEAK_OF_BASE, REGION
from .layouts import ALONE, OURS
from .speed import MASKED, NETWORKS, PLAIN, REGIONAL, WITH_LORAS

SHARE, LEAK_LIMIT = 0.95, 0.05
COST, COST_WITH_LORAS, COST_OF_TOKENS = 1.15, 1.3, 1.1


def write_report(path: Path, metadata: dict, found: dict[str, Any]) -> None:
    """Write the page ``regions.md`` and the data ``regions.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        found: Results by part of the study.
    """
    layouts = {canvas: _layouts(arms) for canvas, arms in found["layouts"].items()}
    adapters = {name: _adapters(arms) for name, arms in found["adapters"].items()}
    outlines = {weight: _rate(flags) for weight, flags in found["outlines"].items()}
    speed = found["speed"]
    lines = [
        "# Regions on the toy base",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        "Intervals are Wilson's at 95 %. A thing is looked for in every square of 64 pixels of its",
        "place, on a stride of 16, and is right where one of them shows its kind in its colour.",
        "",
        "A region's words name its thing twice, *a red cup on the left and a red cup on the right*,",
        "so that only the region says where it is. Words of one thing often leave one region empty on",
        "this base, whose self-attention, which no region parts, goes by the count of things.",
        "",
        *_layout_lines(layouts),
        *_adapter_lines(adapters),
        *_outline_lines(outlines),
        *_speed_lines(speed),
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    stored = {
        "facts": metadata,
        "layouts": layouts,
        "adapters": adapters,
        "outlines": outlines,
        "speed": speed,
    }
    path.with_suffix(".json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def _rate(flags: Any) -> dict[str, float]:
    values = np.array(flags, dtype=bool).ravel()
    low, high = wilson(int(values.sum()), values.size)
    return {"rate": float(values.mean()), "low": low, "high": high, "count": int(values.size)}


def _layouts(arms: dict[str, list]) -> dict[str, Any]:
    """Return each arm's rates, and the rate expected of two independently drawn things."""
    flags = {arm: np.array(values, dtype=bool)[..., 1] for arm, values in arms.items()}
    single = flags[ALONE].mean(axis=0)
    return {
        "expected": float(single[0] * single[1]),
        "alone": [float(rate) for rate in single],
        "both": {arm: _rate(values.all(axis=1)) for arm, values in flags.items() if arm != ALONE},
        "each": {arm: _rate(values) for arm, values in flags.items()},
    }


def _layout_lines(layouts: dict[str, Any]) -> list[str]:
    lines = [
        "## Two things, each in its place",
        "",
        "Kind and colour right in both halves, beside the product of the rates of the same two",
        f"things alone on that canvas; the aim is {SHARE:g} of it.",
        "",
        "| canvas | | both right | each right | of the product |",
        "| --- | --- | --- | --- | --- |",
    ]
    for canvas, rates in layouts.items():
        for arm, both in rates["both"].items():
            share = both["rate"] / rates["expected"]
            lines.append(
                f"| {canvas} | {arm} | {_shown(both)} | {_shown(rates['each'][arm])} "
                f"| {share:.2f} |"
            )
        lines.append(
            f"| {canvas} | {ALONE} | {rates['expected']:.3f} (product) "
            f"| {_shown(rates['each'][ALONE])} | |"
        )
    met = [
        f"{canvas}: {_verdict(rates['both'][OURS]['rate'] >= SHARE * rates['expected'])}"
        for canvas, rates in layouts.items()
    ]
    return [*lines, "", f"The aim: {', '.join(met)}.", ""]


def _adapters(arms: dict[str, list]) -> dict[str, Any]:
    """Return each arm's rates, and two differences with bootstrap intervals."""
    flags = {arm: np.array(values, dtype=bool) for arm, values in arms.items()}
    return {
        "rates": {arm: _rate(values) for arm, values in flags.items()},
        "beside full": difference(flags[REGION], flags[FULL]),
        "leak": difference(flags[LEAK], flags[LEAK_OF_BASE]),
    }


def _adapter_lines(adapters: dict[str, Any]) -> list[str]:
    lines = [
        "## A LoRA in one region",
        "",
        "A class and a style that the base has never seen, each a LoRA in the left half; beside it",
        "the LoRA on the whole model under the same words, read in the same half, and what shows of",
        "it on the right with the LoRA and without. Differences have 95 % bootstrap intervals over",
        "trainings, then pictures.",
        "",
        "| LoRA | in its region | on the full canvas | difference | on the right | on the right, "
        "without it | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    met = []
    for name, found in adapters.items():
        rates = found["rates"]
        shown = {arm: _shown(rate) for arm, rate in rates.items()}
        lines.append(
            f"| {name} | {shown[REGION]} | {shown[FULL]} | {_gap(found['beside full'])} "
            f"| {shown[LEAK]} | {shown[LEAK_OF_BASE]} | {_gap(found['leak'])} |"
        )
        keeps = rates[REGION]["rate"] >= SHARE * rates[FULL]["rate"]
        leaks = found["leak"][0]
        met.append(
            f"{name}: {SHARE:g} of its full-canvas rate {_verdict(keeps)}, leak of {leaks:+.3f} "
            f"{_verdict(leaks <= LEAK_LIMIT)}"
        )
    return [*lines, "", f"The aims: {'; '.join(met)}.", ""]


def _outline_lines(outlines: dict[str, Any]) -> list[str]:
    on, off, bare = (outlines[arm] for arm in ("1", "0", "without the adapter"))
    followed = on["low"] > bare["high"]
    free = abs(off["rate"] - bare["rate"]) <= LEAK_LIMIT
    return [
        "## An outline in one region",
        "",
        "A T2I-Adapter that was trained on outlines; prompts name no kind. How often the outline's",
        "kind is drawn:",
        "",
        "| weight | rate |",
        "| --- | --- |",
        *(f"| {weight} | {_shown(rate)} |" for weight, rate in outlines.items()),
        "",
        f"The aim: followed where the weight is 1, more often than without the adapter, "
        f"{_verdict(followed)}; not where it is 0, within {LEAK_LIMIT:g} of without it, "
        f"{_verdict(free)}.",
        "",
    ]


def _speed_lines(speed: dict[str, Any]) -> list[str]:
    lines = ["## What a step costs", ""]
    for network in NETWORKS:
        found = speed[network]
        plain = found["seconds"][PLAIN]
        weights = "its own" if network == "toy base" else "random"
        lines += [
            f"{network} with {weights} weights, latent {found['latent']} x {found['latent']}, three "
            f"regions, {found['device']}, {found['threads']} threads:",
            "",
            "| | seconds a step | beside plain sampling | once a run, seconds |",
            "| --- | --- | --- | --- |",
            *(
                f"| {arm} | {seconds:.3f} | {seconds / plain:.2f} | {found['once'][arm]:.3f} |"
                for arm, seconds in found["seconds"].items()
            ),
            "",
        ]
        if "operations" in found:
            counted = found["operations"][REGIONAL] / found["operations"][PLAIN]
            taken = found["seconds"][REGIONAL] / plain
            lines += [
                f"The added tokens' operations predict {counted:.2f}; the time is "
                f"{taken / counted:.2f} of that, the aim at most {COST_OF_TOKENS:g}: "
                f"{_verdict(taken <= COST_OF_TOKENS * counted)}.",
                "",
            ]
        elif network == "SD1.5":
            costs = [found["seconds"][arm] / plain for arm in (REGIONAL, WITH_LORAS)]
            aims = (COST, COST_WITH_LORAS)
            verdicts = [
                f"at most {aim:g} {_verdict(cost <= aim)}"
                for cost, aim in zip(costs, aims, strict=True)
            ]
            ratio = found["seconds"][MASKED] / found["seconds"][REGIONAL]
            lines += [
                f"The aims: {', with LoRAs '.join(verdicts)}. Core's masked prompts take "
                f"{ratio:.1f} times as long as regions.",
                "",
            ]
    return lines[:-1]


def _shown(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.3f} ({rate['low']:.2f}–{rate['high']:.2f})"


def _gap(values: tuple[float, float, float]) -> str:
    middle, low, high = values
    return f"{middle:+.3f} ({low:+.2f} to {high:+.2f})"


def _verdict(met: bool) -> str:
    return "met" if met else "not met"
