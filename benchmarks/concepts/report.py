"""Write the markdown page and the JSON of the study of concepts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..intervals import difference, difference_text, rate_text
from .arms import SUBJECTS

FULL = "ED-LoRA"
IDENTITY_AIM, OBEYED_AIM = 0.85, 0.10
COLUMNS = ("identity", "colour", "background")


def write_report(path: Path, metadata: dict, found: dict[str, list], own: list) -> None:
    """Write the page ``concepts.md`` and the data ``concepts.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        found: Flags by arm, ``(training, picture, flag)``.
        own: Flags of the base on its own classes, ``(training, picture, flag)``.
    """
    flags = {arm: np.array(values, dtype=bool) for arm, values in found.items()}
    base = np.array(own, dtype=bool)
    ours, theirs = flags[FULL].mean(axis=(0, 1)), base.mean(axis=(0, 1))
    aim = IDENTITY_AIM * theirs[0]
    obeyed = all(ours[1:] >= theirs[1:] - OBEYED_AIM)
    names = [f"{one.kind} with {one.mark}" if one.mark else one.kind for one in SUBJECTS]
    lines = [
        "# Concepts on the toy base",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        "Two classes that the base has never seen, and two of its own classes with a mark that it",
        "has never seen; six pictures each, red, yellow and green on sand and night. Drawn are all",
        "five colours on all four grounds. Identity is the class, and the mark where there is one.",
        "A step sees two pictures in every arm; the plain LoRA's prompts call the subject by an",
        "unknown word and the same class word. The base's line is of its own classes without marks.",
        "Intervals are Wilson's over all trainings' pictures; differences a 95 % bootstrap over",
        "trainings, then pictures.",
        "",
        "Rates and noise levels were chosen on fish with wings and a seed that is not drawn here.",
        "",
        "| | identity | colour | background | ED-LoRA beside it, identity |",
        "| --- | --- | --- | --- | --- |",
        f"| base, its own classes | {_cells(base)} | |",
    ]
    gaps = {}
    for arm, values in flags.items():
        if arm != FULL:
            same = flags[FULL][: len(values), ..., 0]  # the arm may have fewer seeds
            gaps[arm] = difference(same, values[..., 0])
        gap = difference_text(gaps[arm]) if arm in gaps else ""
        lines.append(f"| {arm} | {_cells(values)} | {gap} |")
    lines += [
        "",
        f"Aim: identity at {IDENTITY_AIM} of the base's, {aim:.2f}: {ours[0]:.2f}, "
        f"{'met' if ours[0] >= aim else 'missed'}; colour and background within "
        f"{OBEYED_AIM:.0%} of the base's: {'met' if obeyed else 'missed'}.",
        "",
        "Identity by subject, a rate for every seed:",
        "",
        f"| | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        *(
            f"| {arm} | {' | '.join(_by_subject(values, len(names)))} |"
            for arm, values in flags.items()
        ),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    data = {
        "facts": metadata,
        "base": dict(zip(COLUMNS, theirs.tolist(), strict=True)),
        "arms": {arm: values.mean(axis=1).tolist() for arm, values in flags.items()},
        "differences": gaps,
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def _cells(flags: np.ndarray) -> str:
    return " | ".join(rate_text(flags[..., place]) for place in range(len(COLUMNS)))


def _by_subject(flags: np.ndarray, subjects: int) -> list[str]:
    rates = flags[..., 0].mean(axis=1).reshape(-1, subjects)  # (seed, subject)
    return [", ".join(f"{rate:.2f}" for rate in column) for column in rates.T]
