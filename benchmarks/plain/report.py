"""Write the markdown page and the JSON of the plain LoRA study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..intervals import difference, wilson

AIM = 0.85
NAMES = {"pack": "Train Plain LoRA (this pack)", "core": "Train LoRA (core)"}


def rates(flags: np.ndarray) -> dict[str, dict[str, float]]:
    """Return rates with Wilson intervals.

    Args:
        flags: Class, colour and background right, ``(training, picture, 3)``.
    """
    flat = flags.reshape(-1, 3)
    columns = {
        "class": flat[:, 0],
        "colour": flat[:, 1],
        "background": flat[:, 2],
        "all three": flat.all(axis=1),
    }
    found = {}
    for name, column in columns.items():
        low, high = wilson(int(column.sum()), len(column))
        found[name] = {
            "rate": float(column.mean()),
            "count": len(column),
            "low": low,
            "high": high,
        }
    return found


def write_report(path: Path, metadata: dict, result: dict) -> None:
    """Write the page ``plain.md`` and the data ``plain.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        result: Flags of ``base`` and of both arms, their learning rates and costs.
    """
    flags = {name: np.array(result[name]["flags"], dtype=float) for name in ("base", *NAMES)}
    summary = {name: rates(value) for name, value in flags.items()}
    gap = difference(flags["pack"][..., 0], flags["core"][..., 0])
    base, ours = summary["base"]["class"]["rate"], summary["pack"]["class"]["rate"]
    lines = [
        "# A plain LoRA on the toy base",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        "A class that the base has never seen, from eight captioned pictures: red, yellow and",
        "green on sand and night. Drawn are blue and purple ones on snow and brick: neither",
        "colours nor backgrounds are the pictures'. The base's line is of its own classes there.",
        "Each arm's learning rate is the best of three; the pack's falls in a line to nothing, core's",
        "stays as it is, since its node has no other course. Intervals are Wilson's over all",
        "trainings' pictures.",
        "",
        "| | learning rate | class | colour | background | all three |",
        "| --- | --- | --- | --- | --- | --- |",
        _line("base, its own classes", "", summary["base"]),
        *(_line(NAMES[arm], f"{result[arm]['rate']:g}", summary[arm]) for arm in NAMES),
        "",
        f"Aim: {AIM} of the base's class rate, {AIM * base:.2f}; reached: {ours:.2f}, "
        f"{ours / base:.2f} of it.",
        f"Class rate beside core's: {gap[0]:+.2f} (95 % interval {gap[1]:+.2f} to {gap[2]:+.2f}; "
        "bootstrap over trainings, then pictures).",
        "",
        "By training: "
        + "; ".join(
            f"{NAMES[arm]} {', '.join(f'{one[:, 0].mean():.2f}' for one in flags[arm])}"
            for arm in NAMES
        )
        + ".",
        "",
        "One picture a step, in a process of its own:",
        "",
        "| | seconds per step | peak memory | more than the loaded base |",
        "| --- | --- | --- | --- |",
    ]
    for arm, name in NAMES.items():
        cost = result[arm]["cost"]
        lines.append(
            f"| {name} | {cost['seconds_per_step']:.3f} | {cost['peak_mib']:.0f} MiB "
            f"| {cost['growth_mib']:.0f} MiB |"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {
        "facts": metadata,
        "rates": summary,
        "difference": gap,
        "learning_rates": {arm: result[arm]["rate"] for arm in NAMES},
        "costs": {arm: result[arm]["cost"] for arm in NAMES},
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _line(name: str, rate: str, found: dict[str, dict[str, float]]) -> str:
    cells = " | ".join(
        f"{one['rate']:.2f} ({one['low']:.2f}–{one['high']:.2f})" for one in found.values()
    )
    return f"| {name} | {rate} | {cells} |"
