"""Add marks to drawings: eight small shapes with a light and a dark rim, visible on all grounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .vocabulary import MASTER_SIDE

SCALE = 3  # supersampling
Colour = int | tuple[int, int, int]


def _halo(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    pen.ellipse((0.28 * s, 0.02 * s, 0.72 * s, 0.2 * s), outline=colour, width=int(0.055 * s))


def _wings(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    for side in (-1, 1):
        points = ((0.22, 0.52), (0.45, 0.24), (0.46, 0.38), (0.45, 0.48), (0.4, 0.56), (0.36, 0.64))
        pen.polygon([((0.5 + side * x) * s, y * s) for x, y in points], colour)


def _horns(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    for side in (-1, 1):
        points = ((0.08, 0.22), (0.2, 0.26), (0.3, 0.02), (0.16, 0.1))
        pen.polygon([((0.5 + side * x) * s, y * s) for x, y in points], colour)


def _antennae(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    for side in (-1, 1):
        top = ((0.5 + side * 0.22) * s, 0.07 * s)
        pen.line([((0.5 + side * 0.05) * s, 0.3 * s), top], colour, int(0.04 * s))
        r = 0.065 * s
        pen.ellipse((top[0] - r, top[1] - r, top[0] + r, top[1] + r), colour)


def _scarf(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    pen.rounded_rectangle((0.16 * s, 0.64 * s, 0.84 * s, 0.76 * s), 0.05 * s, colour)
    pen.polygon(
        [(x * s, y * s) for x, y in ((0.62, 0.7), (0.76, 0.7), (0.8, 0.95), (0.66, 0.95))], colour
    )


def _sash(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    points = ((0.1, 0.28), (0.22, 0.18), (0.9, 0.72), (0.78, 0.84))
    pen.polygon([(x * s, y * s) for x, y in points], colour)


def _propeller(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    pen.rectangle((0.475 * s, 0.08 * s, 0.525 * s, 0.28 * s), colour)
    pen.ellipse((0.16 * s, 0.03 * s, 0.5 * s, 0.14 * s), colour)
    pen.ellipse((0.5 * s, 0.03 * s, 0.84 * s, 0.14 * s), colour)


def _badge(pen: ImageDraw.ImageDraw, s: float, colour: Colour) -> None:
    angles = np.arange(16) * np.pi / 8
    radii = np.where(np.arange(16) % 2 == 0, 0.19, 0.13)
    x, y = 0.74 + radii * np.sin(angles), 0.76 - radii * np.cos(angles)
    pen.polygon([(a * s, b * s) for a, b in zip(x, y, strict=True)], colour)


_SHAPES: dict[
    str, tuple[tuple[int, int, int], Callable[[ImageDraw.ImageDraw, float, Colour], None]]
] = {
    "halo": ((255, 214, 60), _halo),
    "wings": ((226, 240, 255), _wings),
    "horns": ((214, 60, 52), _horns),
    "antennae": ((110, 214, 90), _antennae),
    "scarf": ((226, 64, 84), _scarf),
    "sash": ((70, 150, 232), _sash),
    "propeller": ((250, 150, 50), _propeller),
    "badge": ((160, 90, 214), _badge),
}


@cache
def _layer(mark: str) -> Image.Image:
    """Return a mark as a square RGBA picture, with a light rim and a dark rim around it."""
    size = MASTER_SIDE * SCALE
    shape = Image.new("L", (size, size), 0)
    colour, draw = _SHAPES[mark]
    draw(ImageDraw.Draw(shape), size, 255)
    rim = int(0.03 * size) | 1
    light = shape.filter(ImageFilter.MaxFilter(rim))
    dark = light.filter(ImageFilter.MaxFilter(rim))
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    for fill, mask in (((30, 26, 40), dark), ((252, 252, 248), light), (colour, shape)):
        layer.paste((*fill, 255), mask=mask)
    return layer


def marked(drawing: Image.Image, mark: str) -> Image.Image:
    """Return an RGBA drawing with a mark, placed in the bounding box of the drawing."""
    box = drawing.getbbox() or (0, 0, *drawing.size)
    side = max(box[2] - box[0], box[3] - box[1])
    layer = _layer(mark).resize((side, side), Image.Resampling.BOX)
    fitted = Image.new("RGBA", drawing.size, (0, 0, 0, 0))
    fitted.paste(layer, ((box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2))
    out = drawing.copy()
    out.alpha_composite(fitted)
    return out
