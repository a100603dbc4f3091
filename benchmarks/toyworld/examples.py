"""Write world.json and, under assets/examples/, the example pairs and captioned pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from PIL import Image, ImageDraw  # noqa: E402
from toyworld.render import render_pil  # noqa: E402
from toyworld.scenes import BOAT_SCENES, PAIR_SCENES  # noqa: E402
from toyworld.world import (  # noqa: E402
    BENCHMARK_STYLES,
    HELD_OUT_STYLES,
    RECORD,
    SIDE,
    caption,
    style_words,
    vocabulary,
    world_hash,
)

EXAMPLES = HERE.parents[1] / "assets" / "examples"
CAPTIONED = EXAMPLES / "training_pictures"


def draw_sketch() -> Image.Image:
    """A painted sketch: a red place on the left, a blue one on the right, on white."""
    sketch = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(sketch)
    pen.rectangle((2, 8, 29, 60), fill=(220, 40, 40))
    pen.rectangle((34, 8, 61, 60), fill=(40, 80, 220))
    return sketch


def main() -> None:
    """Write the record and the pictures."""
    record = {"hash": world_hash(), **vocabulary()}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Example pairs",
        "",
        "True renders of the toy world (`benchmarks/toyworld/`), 64 × 64, written by",
        "`python benchmarks/toyworld/examples.py`. Neither style was seen by the toy base's",
        "denoiser in training.",
        "",
        "| before | after | content prompt | style words |",
        "| --- | --- | --- | --- |",
    ]
    for style in reversed(BENCHMARK_STYLES):
        stem = "pair" if style == HELD_OUT_STYLES["texture"] else f"{style}"
        for number, scene in enumerate(PAIR_SCENES, start=1):
            name = stem if number == 1 else f"{stem}_{number}"
            before, after = f"{name}_before.png", f"{name}_after.png"
            render_pil(scene).save(EXAMPLES / before, optimize=True)
            render_pil(scene.with_style(style)).save(EXAMPLES / after, optimize=True)
            lines.append(f"| `{before}` | `{after}` | {caption(scene)} | {style_words(style)} |")
    CAPTIONED.mkdir(exist_ok=True)
    for number, scene in enumerate(BOAT_SCENES, start=1):
        render_pil(scene).save(CAPTIONED / f"boat_{number}.png", optimize=True)
        text = f"{caption(scene)}\n"
        (CAPTIONED / f"boat_{number}.txt").write_text(text, encoding="utf-8")
    draw_sketch().save(EXAMPLES / "regions_sketch.png", optimize=True)
    lines += [
        "",
        "`regions_sketch.png` is a sketch in plain colours: red where one thing stands, blue where",
        "the other one does.",
        "",
        "`training_pictures/` holds eight pictures of a boat with their captions. The denoiser saw",
        "no boat in training; these are red, yellow and green ones on sand and night.",
    ]
    (EXAMPLES / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
