"""The markdown page and the JSON of the study of fusion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .solvers import NORMS

MEAN_AIM, WORST_AIM, BASE_AIM = 0.05, 0.15, 0.05
FASTER_AIM, MEMORY_AIM, LAYERS_AIM = 20.0, 1.05, 0.95
RESAMPLES = 4000


def write_report(path: Path, facts: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write ``fusion.md`` and ``fusion.json`` side by side.

    Args:
        path: Of the page.
        facts: What the result rests on.
        found: By part.
    """
    lines = [
        "# Gradient fusion on the toy base",
        "",
        *(f"{name}: `{value}`  " for name, value in facts.items()),
        "",
        *identity_lines(found["identity"]),
        *cost_lines(found["cost"]),
        *solver_lines("On the toy base, every layer, two concepts", found["solvers"]),
        *solver_lines("At real width, power-law inputs, three concepts", found["wide"]),
        *curve_lines([*found["solvers"], *found["wide"]]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    record = {"facts": dict(facts), **found}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def identity_lines(found: Mapping[str, Any]) -> list[str]:
    """Identity alone and in company, by arm and number of subjects; and the base's own abilities."""
    from .arms import ALONE, FUSED, LEARNT

    alone = [np.array(flags, dtype=bool) for flags in found[ALONE]]
    base = np.array(found["base"], dtype=bool)
    lines = [
        "## Identity",
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
        "the class, with its mark where it has one, or the style. Lost is identity alone minus",
        "identity in company, mean and largest over subjects. Differences to fusion as in the paper",
        "with 95 % bootstrap intervals over pictures, subjects apart. The base's line counts class,",
        "colour and background of its own classes with ordinary prompts.",
        "",
        "| together | arm | identity | lost | largest loss | fused (paper) beside it | "
        "base's class, colour, background |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| 1 | alone | {_mean(alone):.2f} | | | | {_three(base)} |",
    ]
    verdicts = []
    counts = sorted({int(c) for arm in found if arm not in (ALONE, "base") for c in found[arm]})
    for count in counts:
        own = alone[:count]
        fused = [np.array(f, dtype=bool) for f in found[FUSED[0]][str(count)][:count]]
        for arm in (arm for arm in found if arm not in (ALONE, "base")):
            flags = [np.array(f, dtype=bool) for f in found[arm][str(count)]]
            subjects, kept = flags[:count], flags[count]
            losses = [a[:, 0].mean() - b[:, 0].mean() for a, b in zip(own, subjects, strict=True)]
            gap = ""
            if arm != FUSED[0]:
                middle, low, high = _gap(fused, subjects)
                gap = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
                if arm not in FUSED:
                    verdicts.append((f"ahead of {arm} with {count}", low > 0))
            else:
                verdicts += [
                    (f"mean loss with {count} at most {MEAN_AIM}", np.mean(losses) <= MEAN_AIM),
                    (f"largest loss with {count} at most {WORST_AIM}", max(losses) <= WORST_AIM),
                    (
                        f"the base's abilities with {count} within {BASE_AIM}",
                        bool(np.all(kept.mean(0) >= base.mean(0) - BASE_AIM)),
                    ),
                ]
            lines.append(
                f"| {count} | {arm} | {_mean(subjects):.2f} | {np.mean(losses):+.2f} | "
                f"{max(losses):+.2f} | {gap} | {_three(kept)} |"
            )
    return [*lines, "", *_verdicts(verdicts), ""]


def cost_lines(found: Mapping[str, Any]) -> list[str]:
    """Seconds and memory by number of concepts."""
    lines = [
        "## Cost of a whole fusion",
        "",
        "The whole process on the CPU; growth is beyond the loaded base, its peak watched twenty",
        "times a second.",
        "",
        "| concepts | seconds | per concept | of it solving | statistics (MiB) | growth (MiB) | "
        "peak (MiB) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count, one in found.items():
        solving = sum(stage["solving"] for stage in one["stages"].values())
        statistics = max(stage["statistics_mib"] for stage in one["stages"].values())
        lines.append(
            f"| {count} | {one['seconds']:.1f} | {one['seconds'] / int(count):.1f} | "
            f"{solving:.1f} | {statistics:.1f} | {one['growth_mib']:.0f} | {one['peak_mib']:.0f} |"
        )
    ordered = [found[key] for key in sorted(found, key=int)]
    ratio = ordered[-1]["peak_mib"] / ordered[0]["peak_mib"]
    each = [one["seconds"] / one["concepts"] for one in ordered]
    verdicts = [
        (f"peak with most concepts {ratio:.3f} of that with fewest", ratio <= MEMORY_AIM),
        ("seconds per concept within a quarter of each other", max(each) <= 1.25 * min(each)),
    ]
    return [*lines, "", *_verdicts(verdicts), ""]


def solver_lines(title: str, layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Objective, norm and time of the closed form beside L-BFGS on stored activations."""
    lines = [
        f"## {title}",
        "",
        "Closed form: accumulation and solution; authors' recipe: L-BFGS on stored activations, 500",
        "iterations in the text encoder and for keys and values, 50 elsewhere. The objective is a",
        "share of that without any change. Equal norm: at the damping of each layer whose change is",
        "as large as theirs, times what the aim allows (1.4 in the text encoder, 1.1 elsewhere).",
        "",
        "| stage | layers | objective at most theirs | the same at equal norm | median objective, "
        "ours and theirs | largest norm beside theirs | median damping at equal norm | seconds, "
        "ours and theirs | times faster |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    verdicts = []
    for stage in dict.fromkeys(layer["stage"] for layer in layers):
        own = [layer for layer in layers if layer["stage"] == stage]
        # What both fit to the last digit counts as equal.
        better = np.mean([x["error"][0] <= max(x["error"][1], 1e-9) for x in own])
        equal = np.mean([x["matched"][1] <= max(x["error"][1], 1e-9) for x in own])
        damping = np.median([x["matched"][0] for x in own])
        norm = max(x["norm"][0] / max(x["norm"][1], 1e-30) for x in own)
        ours, theirs = (sum(x["seconds"][i] for x in own) for i in (0, 1))
        errors = [np.median([x["error"][i] for x in own]) for i in (0, 1)]
        lines.append(
            f"| {stage} | {len(own)} | {better:.0%} | {equal:.0%} | {errors[0]:.2e}, "
            f"{errors[1]:.2e} | {norm:.2f} | {damping:.1e} | {ours:.2f}, {theirs:.1f} | {theirs / ours:.0f} |"
        )
        verdicts += [
            (f"{stage}: objective on {LAYERS_AIM:.0%} of layers", better >= LAYERS_AIM),
            (f"{stage}: norm at most {NORMS[stage]} times", norm <= NORMS[stage]),
        ]
    whole = [sum(x["seconds"][i] for x in layers) for i in (0, 1)]
    faster = whole[1] / whole[0]
    verdicts.append((f"{faster:.0f} times faster, aim {FASTER_AIM:.0f}", faster >= FASTER_AIM))
    return [*lines, "", *_verdicts(verdicts), ""]


def curve_lines(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Median objective and norm over damping, by stage."""
    dampings = list(layers[0]["curve"])
    lines = [
        "## Over damping",
        "",
        "Median over layers: objective beside the authors' recipe, and norm beside theirs.",
        "",
        f"| stage | {' | '.join(dampings)} |",
        f"| --- |{' --- |' * len(dampings)}",
    ]
    for stage in dict.fromkeys(layer["stage"] for layer in layers):
        own = [layer for layer in layers if layer["stage"] == stage]
        cells = []
        for damping in dampings:
            error = np.median([x["curve"][damping][0] / max(x["error"][1], 1e-9) for x in own])
            norm = np.median([x["curve"][damping][1] for x in own])
            cells.append(f"{error:.2g}, {norm:.2f}")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return [*lines, ""]


def _gap(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Difference of mean identities with its interval, pictures drawn anew within each subject."""
    generator = np.random.RandomState(0)
    drawn = np.zeros(RESAMPLES)
    for one, other in zip(ours, theirs, strict=True):
        for flags, sign in ((one[:, 0], 1), (other[:, 0], -1)):
            picked = generator.randint(len(flags), size=(RESAMPLES, len(flags)))
            drawn += sign * flags[picked].mean(axis=1) / len(ours)
    middle = _mean(ours) - _mean(theirs)
    return middle, float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _mean(flags: Sequence[np.ndarray]) -> float:
    return float(np.mean([one[:, 0].mean() for one in flags]))


def _three(flags: np.ndarray) -> str:
    return ", ".join(f"{share:.2f}" for share in flags.mean(axis=0))


def _verdicts(verdicts: Sequence[tuple[str, bool]]) -> list[str]:
    return [f"- {text}: {'met' if met else 'missed'}" for text, met in verdicts]
