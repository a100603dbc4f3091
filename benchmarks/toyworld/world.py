"""Vocabulary, scenes, captions and splits of the toy world; fixed before its base is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SIDE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 36),
    "yellow": (252, 214, 26),
    "green": (30, 158, 66),
    "blue": (38, 88, 226),
    "purple": (146, 48, 178),
}
BACKGROUNDS = ("sand", "snow", "night", "brick")
PLAIN = "plain"
BASE_STYLES = (PLAIN, "comic", "watercolor", "pixel", "sketch", "chalk")
HELD_OUT_STYLES = {"palette": "blueprint", "texture": "mosaic", "edges": "neon", "form": "wavy"}
STYLES = (*BASE_STYLES, *HELD_OUT_STYLES.values())
BENCHMARK_STYLES = (HELD_OUT_STYLES["palette"], HELD_OUT_STYLES["texture"])
BASE_CLASSES = (
    "ball", "star", "heart", "moon", "cross", "tree", "house", "ring", "fish", "cup",
)  # fmt: skip
HELD_OUT_CLASSES = ("boat", "arrow", "umbrella", "crown")
CLASSES = (*BASE_CLASSES, *HELD_OUT_CLASSES)
MARKS = ("band", "dots", "face", "patch", "hat", "halo", "legs", "wings")
GENERIC_CLASS = "thing"
GENERIC_SHARE = 0.08
EMPTY_SHARE = 0.10
HELD_OUT_COMBINATIONS = 10
RECORD = Path(__file__).with_name("world.json")


@dataclass(frozen=True)
class Thing:
    """One object: its class, its colour and, outside the base's training, a mark."""

    kind: str
    colour: str
    mark: str | None = None


@dataclass(frozen=True)
class Scene:
    """Everything that a render shows: one or two things, ground, style, canvas, and the jitter.

    ``seed`` decides place, size and the ground's details; it is no part of the caption.
    """

    things: tuple[Thing, ...]
    background: str
    style: str = PLAIN
    width: int = SIDE
    height: int = SIDE
    seed: int = 0

    def with_style(self, style: str) -> Scene:
        """The same picture in another style, jitter included."""
        return replace(self, style=style)


def style_words(style: str) -> str:
    """The words that name a style in a caption; none for the plain style."""
    return "" if style == PLAIN else f"in {style} style"


def caption(scene: Scene, *, generic: bool = False) -> str:
    """The caption of a scene; ``generic`` names every class `thing`."""
    names = []
    for thing in scene.things:
        kind = GENERIC_CLASS if generic else thing.kind
        mark = f" with {thing.mark}" if thing.mark else ""
        names.append(f"a {thing.colour} {kind}{mark}")
    subject = names[0] if len(names) == 1 else f"{names[0]} on the left and {names[1]} on the right"
    return f"{subject} on {scene.background} {style_words(scene.style)}".strip()


def is_held_out(kind: str, colour: str, background: str, style: str) -> bool:
    """Whether a combination is one of the tenth that the base never sees."""
    digest = hashlib.sha256("/".join((kind, colour, background, style)).encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // HELD_OUT_COMBINATIONS


def combinations(styles: Sequence[str] = BASE_STYLES) -> list[tuple[str, str, str, str]]:
    """All (class, colour, background, style) of the base's vocabulary, held-out ones included."""
    return [
        (kind, colour, background, style)
        for kind in BASE_CLASSES
        for colour in COLOURS
        for background in BACKGROUNDS
        for style in styles
    ]


def random_scene(
    generator: np.random.RandomState,
    *,
    objects: int = 1,
    wide: bool = False,
    held_out: bool | None = False,
    styles: Sequence[str] = BASE_STYLES,
) -> Scene:
    """A random scene; ``held_out`` False/True/None asks for seen, held-out or any combinations.

    Two objects never share class and colour both, and both belong to the same side of the split.
    """
    while True:
        background = BACKGROUNDS[generator.randint(len(BACKGROUNDS))]
        style = styles[generator.randint(len(styles))]
        things = tuple(
            Thing(
                BASE_CLASSES[generator.randint(len(BASE_CLASSES))],
                list(COLOURS)[generator.randint(len(COLOURS))],
            )
            for _ in range(objects)
        )
        sides = {is_held_out(t.kind, t.colour, background, style) for t in things}
        if len(set(things)) == objects and (held_out is None or sides == {held_out}):
            break
    width = 2 * SIDE if wide else SIDE
    return Scene(things, background, style, width, SIDE, int(generator.randint(2**31)))


def world_hash() -> str:
    """The hash of everything that decides a picture, a caption or a split: four source files.

    Sources rather than pixels, since a rounding of another NumPy is no other world.
    """
    digest = hashlib.sha256()
    for name in ("world.py", "shapes.py", "styles.py", "render.py"):
        digest.update(Path(__file__).with_name(name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def vocabulary() -> dict[str, object]:
    """The world's words and shares, as recorded beside its hash."""
    return {
        "side": SIDE,
        "colours": {name: list(rgb) for name, rgb in COLOURS.items()},
        "backgrounds": list(BACKGROUNDS),
        "base_styles": list(BASE_STYLES),
        "held_out_styles": HELD_OUT_STYLES,
        "benchmark_styles": list(BENCHMARK_STYLES),
        "base_classes": list(BASE_CLASSES),
        "held_out_classes": list(HELD_OUT_CLASSES),
        "marks": list(MARKS),
        "generic_class": GENERIC_CLASS,
        "generic_share": GENERIC_SHARE,
        "empty_share": EMPTY_SHARE,
        "held_out_combinations": sum(is_held_out(*c) for c in combinations()),
    }
