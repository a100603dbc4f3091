"""Write the markdown page and the JSON of the optimisers study."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .problems import LEVELS, PROBLEMS

AIM = 0.05  # share of a step that preconditioning may take
# The optimiser without the preconditioner, or the closest one.
UNSCALED = {"Scaled SGD": "SGD", "Scaled AdamW": "AdamW", "LoRA-RITE": "AdamW"}
TITLES = {
    "matrix": "a matrix of rank 8 and condition 30 from noisy batches; relative squared error",
    **PROBLEMS,
}


def write_report(path: Path, metadata: dict, result: dict) -> None:
    """Write the page ``optimisers.md`` and the data ``optimisers.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        result: Loss curves by problem, optimiser and rate, and the timings.
    """
    curves = {name: _with_seconds(name, result) for name in (*PROBLEMS, "matrix")}
    best = {name: _best_rates(found) for name, found in curves.items()}
    shares = {name: _shares(cost) for name, cost in result["costs"].items()}
    lines = [
        "# The optimisers on three trainings and a matrix",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        f"On the toy base the loss is held out: every training picture at {LEVELS} fixed noise levels,",
        "with noise that no step has drawn, the same for all. One training per cell, so a small",
        "difference may be chance. No weight decay, clip or schedule; preconditioners are damped",
        "as by default. Seconds are steps times the median step below, where the optimisers took",
        "turns.",
        "",
        "## The best of three learning rates",
        "",
        "Beside the loss: the share of the steps, and of the seconds, after which it was below",
        "AdamW's best.",
        "",
        "| | " + " | ".join(curves) + " |",
        "| --- |" + " --- |" * len(curves),
    ]
    for optimizer in next(iter(curves.values())):
        cells = [_summary(name, optimizer, curves, best) for name in curves]
        lines.append(f"| {optimizer} | {' | '.join(cells)} |")
    lines += ["", *_share_lines(result["costs"], shares), "", *_wide_lines(result["wide"])]
    for name, found in curves.items():
        lines += ["", f"## {name}: {TITLES[name]}", "", *_curve_lines(found)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {
        "facts": metadata,
        "courses": curves,
        "costs": result["costs"],
        "shares": shares,
        "wide": result["wide"],
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _with_seconds(name: str, result: dict) -> dict:
    """Return a problem's curves as (step, seconds, loss), without points that have diverged."""
    found: dict[str, dict] = {}
    for optimizer, rates in result["courses"][name].items():
        found[optimizer] = {}
        for rate, curve in rates.items():
            steps, losses = curve["steps"], curve["losses"]
            if "seconds" in curve:
                seconds = curve["seconds"]
            else:
                per_step = result["costs"][name][optimizer]["step"]
                seconds = [round(step * per_step, 3) for step in steps]
            points = [
                point for point in zip(steps, seconds, losses, strict=True) if _is_valid(point[2])
            ]
            found[optimizer][f"{float(rate):g}"] = points
    return found


def _is_valid(loss: float) -> bool:
    return math.isfinite(loss) and loss < 1e3


def _step_count(found: dict) -> int:
    """Return the last step of the curves that have not diverged."""
    return max(points[-1][0] for rates in found.values() for points in rates.values())


def _final_loss(points: list, step_count: int) -> float:
    return points[-1][2] if points[-1][0] == step_count else math.inf


def _best_rates(found: dict) -> dict[str, str]:
    """Return the learning rate with the lowest final loss, by optimiser."""
    step_count = _step_count(found)
    return {
        optimizer: min(rates, key=lambda rate: _final_loss(rates[rate], step_count))
        for optimizer, rates in found.items()
    }


def _summary(name: str, optimizer: str, curves: dict, best: dict) -> str:
    """Return the final loss at the best rate, and the share of steps until it is below AdamW's."""
    found, chosen = curves[name], best[name]
    points, plain = (found[o][chosen[o]] for o in (optimizer, "AdamW"))
    text = f"{points[-1][2]:.3g} at {chosen[optimizer]}"
    if optimizer == "AdamW":
        return text
    there = next((point for point in points if point[2] <= plain[-1][2]), None)
    if there is None:
        return text
    steps, seconds = (there[axis] / plain[-1][axis] for axis in (0, 1))
    return f"{text}; {steps:.0%}, {seconds:.0%}"


def _curve_lines(found: dict) -> list[str]:
    step_count = _step_count(found)
    counts = [point[0] for points in found["AdamW"].values() for point in points]
    counts = sorted(set(counts))
    lines = [
        "| | learning rate | " + " | ".join(f"{count} steps" for count in counts) + " | seconds |",
        "| --- | --- |" + " --- |" * (len(counts) + 1),
    ]
    for optimizer, rates in found.items():
        for rate, points in rates.items():
            cells = [f"{point[2]:.4g}" for point in points]
            cells += ["diverged"] * (len(counts) - len(cells))
            seconds = f"{points[-1][1]:.3g}" if points[-1][0] == step_count else ""
            lines.append(f"| {optimizer} | {rate} | {' | '.join(cells)} | {seconds} |")
    return lines


def _shares(cost: dict) -> dict[str, float]:
    """Return the seconds that a preconditioner adds to its optimiser, as a share of the step."""
    return {
        optimizer: (cost[optimizer]["optimizer"] - cost[unscaled]["optimizer"])
        / cost[optimizer]["step"]
        for optimizer, unscaled in UNSCALED.items()
    }


def _share_lines(costs: dict, shares: dict) -> list[str]:
    lines = [
        "## What preconditioning takes",
        "",
        f"Milliseconds of a whole step and of its optimiser; aim: at most {AIM:.0%} of the step for",
        "what the optimiser takes beyond its unscaled one (SGD; AdamW, also for LoRA-RITE).",
        "",
        "| | " + " | ".join(f"{name}: step / optimiser | share" for name in costs) + " |",
        "| --- |" + " --- | --- |" * len(costs),
    ]
    for optimizer in next(iter(costs.values())):
        cells = []
        for name, cost in costs.items():
            times = cost[optimizer]
            cells.append(f"{1e3 * times['step']:.1f} / {1e3 * times['optimizer']:.2f}")
            share = shares[name].get(optimizer)
            cells.append("" if share is None else f"{share:.1%}")
        lines.append(f"| {optimizer} | {' | '.join(cells)} |")
    return lines


def _wide_lines(wide: dict) -> list[str]:
    """Return the lines of the measurement at SDXL's widths."""
    passes, times = wide["passes"], wide["optimizers"]
    lines = [
        f"At SDXL's real widths, {wide['layers']} layers of rank {wide['rank']} "
        f"({wide['numbers'] / 1e6:.0f} million numbers), random",
        f"weights in bf16: forward and backward of one row at {wide['pixels']} pixels take "
        f"{passes:.0f} s; at 1024",
        f"pixels, where SDXL is trained, they take over {(1024 // wide['pixels']) ** 2} times as "
        "long and the share is as much smaller.",
        "",
        "| | optimiser alone, s | share of a step |",
        "| --- | --- | --- |",
    ]
    for optimizer, seconds in times.items():
        share = ""
        if optimizer in UNSCALED:
            share = f"{(seconds - times[UNSCALED[optimizer]]) / (passes + seconds):.1%}"
        lines.append(f"| {optimizer} | {seconds:.2f} | {share} |")
    return lines
