"""Write the markdown page and the JSON of the Break-for-Make study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..intervals import difference, difference_text, rate_text

FULL = "all stages"
BASELINES = ("joint LoRA", "sum of two LoRAs, each at 1", "sum of two LoRAs, each at 0.7")


def write_report(path: Path, metadata: dict, found: dict[str, list], sdxl: dict) -> None:
    """Write the page ``break_for_make.md`` and the data ``break_for_make.json``.

    Args:
        path: Path of the page.
        metadata: Values that the results depend on.
        found: Flags by arm, ``(training, picture, flag)``.
        sdxl: Time and memory of a step at SDXL's real widths.
    """
    flags = {arm: np.array(values, dtype=bool) for arm, values in found.items()}
    both = {arm: values[..., :2].all(axis=-1) for arm, values in flags.items()}
    gaps = {arm: difference(both[FULL], both[arm]) for arm in both if arm != FULL}
    short = ("style half a quarter as long", "style half a quarter as long, AdamW")
    balance = difference(both[short[0]], both[short[1]])
    lines = [
        "# Break-for-Make on the toy base",
        "",
        *(f"{name}: `{value}`  " for name, value in metadata.items()),
        "",
        "Contents and styles that the base has never seen: a boat in mosaic, a crown as a",
        "blueprint. A content is learnt from eight plain pictures, a style from four pictures of",
        "other things; no picture shows the content in the style. Drawn are the contents in the",
        "styles, in all colours on all grounds. Every arm that has a stage gives it the same steps",
        "and rate, but AdamW has a rate of its own; ordinary LoRAs see as many pictures as all",
        "stages together. The rate of ordinary LoRAs is the best of three on the first pair and a",
        "seed that is not drawn here; those of halves and fine-tunes were chosen on the first pair's",
        "first seed, which is drawn here and may favour them there. Rates of success are Wilson's",
        "intervals over all trainings' pictures; differences a 95 % bootstrap over trainings, then",
        "pictures, paired by noise.",
        "",
        "| | content | style | both | colour | background | all stages beside it, both |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, values in flags.items():
        columns = [values[..., 0], values[..., 1], both[arm], values[..., 2], values[..., 3]]
        shown = " | ".join(rate_text(column) for column in columns)
        lines.append(f"| {arm} | {shown} | {difference_text(gaps[arm]) if arm in gaps else ''} |")
    met = all(gaps[arm][1] > 0 for arm in BASELINES)
    lines += [
        "",
        "Aim: all stages ahead of the joint LoRA and of the sums in both right, with an interval",
        f"apart from 0: {'met' if met else 'missed'}.",
        "",
        "The claim that the preconditioner balances halves of unequal length (both right, with it",
        f"minus without, the style half a quarter as long): {difference_text(balance)}.",
        "",
        "By training, both right:",
        "",
        *(
            f"- {arm}: {', '.join(f'{rate:.2f}' for rate in values.mean(axis=1))}"
            for arm, values in both.items()
        ),
        "",
        "## A step at SDXL's real widths, random weights",
        "",
        f"{sdxl['layers']} layers, rank {sdxl['rank']}, pictures of {sdxl['pixels']} pixels, "
        f"bf16, {sdxl['threads']} CPU threads.",
        "",
        "| | seconds | of it the optimiser | peak memory beyond the base |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {sdxl[name]['seconds']:.1f} | {sdxl[name]['optimizer_seconds']:.2f} | "
            f"{sdxl[name]['growth_mib']:.0f} MiB |"
            for name in ("break", "make")
        ),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    data = {
        "facts": metadata,
        "both": {arm: values.mean(axis=1).tolist() for arm, values in both.items()},
        "differences": gaps,
        "balance": balance,
        "sdxl": sdxl,
    }
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
