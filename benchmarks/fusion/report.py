"""Write the markdown page and the JSON of the fusion study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..intervals import difference, difference_text, rate_text
from .arms import ALONE, ARMS, BASE, FUSED, LEARNT
from .cost_report import cost_lines, real_width_lines
from .layers_report import control_lines, curve_lines, solver_lines
from .protocol import PROMPTS
from .verdicts import verdict_lines

MEAN_AIM, WORST_AIM, BASE_AIM = 0.05, 0.15, 0.05


def write_report(path: Path, metadata: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write the page ``fusion.md`` and the data ``fusion.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        found: Results by part.
    """
    together = min(map(int, found["identity"][FUSED[0]]))
    lines = [
        "# Gradient fusion",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        *identity_lines(found["identity"]),
        *cost_lines(found["cost"]),
        *real_width_lines(found["real_width"]),
        *solver_lines(f"On the toy base, every layer, {together} concepts", found["solvers"]),
        *solver_lines("At real width, power-law inputs, three concepts", found["wide"]),
        *control_lines(found["wide"]),
        *curve_lines([*found["solvers"], *found["wide"]]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    record = {"facts": dict(metadata), **found, "identity": _shares(found["identity"])}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def identity_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of identity, alone and combined, and of the base's own abilities."""
    alone = [_by_prompt(flags) for flags in found[ALONE]]
    base = _by_prompt(found[BASE])
    lines = [
        "## Identity on the toy base",
        "",
        "Subjects: "
        + "; ".join(
            f"{one.subject.kind + (' with ' + one.subject.mark if one.subject.mark else '')}"
            f"{' (words)' if one.words else ''}"
            if one.subject
            else f"{one.style} style"
            for one in LEARNT[: len(alone)]
        )
        + ". *Words* are concepts with words of their own, the others ordinary LoRAs. Identity is",
        "the class, with its mark where it has one, or the style, with Wilson's interval. Lost is",
        "identity alone minus identity in company, on the same prompts and noise: mean over subjects",
        "and the largest. Differences have 95 % bootstrap intervals over subjects, then pictures,",
        "paired by noise. The base's line counts class, colour and background of its own classes",
        "with ordinary prompts, always on the same noise.",
        "",
        "| together | arm | pictures of each | identity | lost | largest loss | fused (paper) beside "
        "it | base's class, colour, background |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| 1 | alone | {alone[0][..., 0].size} | {_rate(alone)} | | | | {_three(base)} |",
    ]
    verdicts: list[tuple[str, bool]] = []
    for count in sorted(map(int, found[FUSED[0]])):
        fused = [_by_prompt(flags) for flags in found[FUSED[0]][str(count)]]
        for arm in ARMS:
            *subjects, kept = [_by_prompt(flags) for flags in found[arm][str(count)]]
            many = kept.shape[1]
            lost = difference(_right(alone[:count], many), _right(subjects, many))
            losses = _right(alone[:count], many).mean(1) - _right(subjects, many).mean(1)
            gap_text = ""
            mine = kept.mean((0, 1)) - base[:, :many].mean((0, 1))
            stays = bool(np.abs(mine).max() <= BASE_AIM)
            if arm == FUSED[0]:
                verdicts += [
                    (f"mean loss with {count} at most {MEAN_AIM}", lost[0] <= MEAN_AIM),
                    (f"largest loss with {count} at most {WORST_AIM}", losses.max() <= WORST_AIM),
                    (f"the base's abilities with {count} within {BASE_AIM}", stays),
                ]
            else:
                gap = difference(_right(fused[:count], many), _right(subjects, many))
                gap_text = difference_text(gap)
                if arm == FUSED[2]:
                    claim = f"the base's abilities with {count} and prior prompts"
                    verdicts.append((f"{claim} within {BASE_AIM}", stays))
                if arm not in FUSED:
                    verdicts.append((f"ahead of {arm} with {count}", gap[1] > 0))
            lines.append(
                f"| {count} | {arm} | {subjects[0][..., 0].size} | {_rate(subjects)} | "
                f"{difference_text(lost)} | {losses.max():+.2f} | {gap_text} | {_three(kept)} |"
            )
    return [*lines, "", *verdict_lines(verdicts), "", *_each_lines(found, alone), ""]


def _shares(found: Any) -> Any:
    """Return nested flags with every list of pictures replaced by the shares that are true."""
    if isinstance(found, dict):
        return {name: _shares(one) for name, one in found.items()}
    if isinstance(found[0][0], bool):
        return np.mean(found, axis=0).round(4).tolist()
    return [_shares(one) for one in found]


def _each_lines(found: Mapping[str, Any], alone: Sequence[np.ndarray]) -> list[str]:
    """Return the table of every subject's identity, alone and in the default fusion."""
    counts = sorted(found[FUSED[0]], key=int)
    lines = [
        f"| subject | alone | {' | '.join(f'{FUSED[0]}, {count}' for count in counts)} |",
        f"| --- | --- |{' --- |' * len(counts)}",
    ]
    for index, own in enumerate(alone):
        cells = [
            f"{np.array(found[FUSED[0]][count][index])[:, 0].mean():.2f}"
            if index < int(count)
            else ""
            for count in counts
        ]
        lines.append(f"| {LEARNT[index].word} | {own[..., 0].mean():.2f} | {' | '.join(cells)} |")
    return lines


def _by_prompt(flags: Sequence[Sequence[bool]]) -> np.ndarray:
    """Return flags ``(prompt, picture, flag)``."""
    return np.array(flags, dtype=bool).reshape(PROMPTS, -1, 3)


def _right(subjects: Sequence[np.ndarray], many: int) -> np.ndarray:
    """Return identity flags ``(subject, picture)`` of the first ``many`` pictures per prompt."""
    return np.array([one[:, :many, 0].ravel() for one in subjects])


def _rate(subjects: Sequence[np.ndarray]) -> str:
    return rate_text(np.array(subjects)[..., 0])


def _three(flags: np.ndarray) -> str:
    return ", ".join(f"{share:.2f}" for share in flags.mean(axis=(0, 1)))
