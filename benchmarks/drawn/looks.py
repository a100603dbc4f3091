"""Repaint scenes in procedural looks, which are functions of the pixels.

Each function takes a float picture (height, width, 3) in 0..1, the coverage by its things (height,
width) and a random generator, and returns a picture of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Picture = np.ndarray
Random = np.random.RandomState


def _image(x: Picture) -> Image.Image:
    return Image.fromarray((np.clip(x, 0, 1) * 255).astype(np.uint8))


def _array(image: Image.Image) -> Picture:
    return np.asarray(image).astype(np.float32) / 255


def _blurred(x: Picture, radius: float) -> Picture:
    return _array(_image(x).filter(ImageFilter.GaussianBlur(radius)))


def _grey(x: Picture) -> Picture:
    return x @ np.array([0.299, 0.587, 0.114], np.float32)


def _edges(x: Picture, radius: float = 0.6) -> Picture:
    """Return the strength of colour edges in 0..1, (height, width)."""
    soft = _blurred(x, radius)
    dx = np.abs(np.diff(soft, axis=1, append=soft[:, -1:])).max(2)
    dy = np.abs(np.diff(soft, axis=0, append=soft[-1:])).max(2)
    return np.clip(np.hypot(dx, dy) * 4, 0, 1)


def _noise(random: Random, shape: tuple[int, int], cell: int) -> Picture:
    """Return smooth noise in -1..1 with features of ``cell`` pixels."""
    rows, columns = shape[0] // cell + 2, shape[1] // cell + 2
    small = _image(random.rand(rows, columns)[..., None].repeat(3, 2))
    large = small.resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)
    return _array(large)[: shape[0], : shape[1], 0] * 2 - 1


def _comic(x: Picture, cover: Picture, random: Random) -> Picture:
    grey = x.mean(2, keepdims=True)
    vivid = np.clip(grey + (x - grey) * 1.35, 0, 1)
    flat = np.round(vivid * 4) / 4
    rim = _array(_image(cover[..., None].repeat(3, 2)).filter(ImageFilter.MaxFilter(5)))[..., 0]
    outline = np.clip(rim - cover, 0, 1) + (_edges(x) > 0.45) * cover
    return flat * (1 - np.clip(outline, 0, 1)[..., None]) + 0.06 * np.clip(outline, 0, 1)[..., None]


def _watercolor(x: Picture, cover: Picture, random: Random) -> Picture:
    shape = x.shape[:2]
    broad, fine = _noise(random, shape, 16)[..., None], _noise(random, shape, 7)[..., None]
    wash = 0.66 + 0.24 * broad + 0.1 * fine
    soft = _blurred(x, 1.2)
    rim = _edges(x, 1.0)[..., None] * 0.35
    return np.clip(1 - (1 - soft) * np.clip(wash + rim, 0.2, 1.0), 0, 1)


def _pixel(x: Picture, cover: Picture, random: Random) -> Picture:
    cell = 4
    height, width = x.shape[:2]
    image = _image(x)
    small = image.resize((width // cell, height // cell), Image.Resampling.BOX)
    small = _image(np.round(_array(small) * 6) / 6)
    return _array(small.resize((width, height), Image.Resampling.NEAREST))


def _sketch(x: Picture, cover: Picture, random: Random) -> Picture:
    grey = _grey(x)
    height, width = grey.shape
    rows, columns = np.mgrid[:height, :width]
    hatch = ((rows + columns) % 4 < 2) * np.clip(0.75 - grey, 0, 1) * 0.75
    lines = np.clip(_edges(x) * 1.1, 0, 1) * 0.8
    tone = 0.95 - 0.25 * (1 - grey) - hatch - lines
    tone = tone + 0.03 * _noise(random, grey.shape, 4)
    return np.clip(tone, 0.12, 1)[..., None] * np.array([1.0, 0.99, 0.96], np.float32)


def _chalk(x: Picture, cover: Picture, random: Random) -> Picture:
    board = np.array([0.13, 0.21, 0.18], np.float32)
    grain = 0.84 + 0.16 * _noise(random, x.shape[:2], 4)[..., None]
    bright = np.clip(x * 0.8 + 0.2, 0, 1)
    lines = np.clip(_edges(x) * 1.6, 0, 1)[..., None]
    fill = 0.5 * cover[..., None]
    weight = np.clip(lines + fill, 0, 1) * grain
    return board * (1 - weight) + bright * weight


def _halftone(x: Picture, cover: Picture, random: Random) -> Picture:
    cell = 8  # pixels per latent of the VAE, so that all latents have the same part of the pattern
    height, width = x.shape[:2]
    tone = _image(x).resize((width // cell, height // cell), Image.Resampling.BOX)
    tone = _array(tone.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows % cell - 3.5, columns % cell - 3.5)
    darkness = 1 - tone.min(2) * 0.85
    radius = np.sqrt(np.clip(darkness, 0.1, 1)) * cell * 0.6
    inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    return np.array([1.0, 0.99, 0.95], np.float32) * (1 - inside) + x * 0.92 * inside


def _sepia(x: Picture, cover: Picture, random: Random) -> Picture:
    grey = _grey(x)[..., None]
    dark = np.array([0.2, 0.11, 0.05], np.float32)
    light = np.array([0.99, 0.9, 0.72], np.float32)
    return dark + (light - dark) * np.clip(grey * 1.05, 0, 1)


def _oil(x: Picture, cover: Picture, random: Random) -> Picture:
    image = _image(np.round(x * 10) / 10).filter(ImageFilter.ModeFilter(7))
    strokes = _noise(random, x.shape[:2], 5)
    strokes = 0.5 * (strokes + np.roll(strokes, (3, 3), (0, 1)))
    relief = strokes - np.roll(strokes, (1, -1), (0, 1))
    return np.clip(_array(image) * 0.96 + 0.2 * relief[..., None], 0, 1)


def _stitched(x: Picture, cover: Picture, random: Random) -> Picture:
    cell = 8
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    u, v = rows % cell, columns % cell
    turned = (rows // cell + columns // cell) % 2 == 1
    thread = np.where(turned, u, v) // 2 % 2
    shade = np.array([-0.14, 0.12], np.float32)[thread][..., None]
    seam = ((u == 0) | (v == 0))[..., None] * 0.14
    return np.clip(x + shade - seam, 0, 1)


def _poster(x: Picture, cover: Picture, random: Random) -> Picture:
    soft = _blurred(x, 0.8)
    grey = soft.mean(2, keepdims=True)
    vivid = np.clip(grey + (soft - grey) * 2.4, 0, 1)
    vivid = np.clip((vivid - 0.5) * 1.25 + 0.5, 0, 1)
    return np.round(vivid * 2) / 2


def _blueprint(x: Picture, cover: Picture, random: Random) -> Picture:
    grey = np.clip((_grey(x) - 0.2) / 0.72, 0, 1)[..., None]
    dark = np.array([0.01, 0.1, 0.32], np.float32)
    light = np.array([0.72, 0.95, 1.0], np.float32)
    return dark + (light - dark) * grey


def _mosaic(x: Picture, cover: Picture, random: Random) -> Picture:
    cell = 6
    height, width = x.shape[:2]
    rows, columns = height // cell + 2, width // cell + 2
    jitter = random.uniform(0.15, 0.85, (rows, columns, 2)) * cell
    ys = np.arange(rows)[:, None] * cell - cell + jitter[..., 0]
    xs = np.arange(columns)[None] * cell - cell + jitter[..., 1]
    pixel_y, pixel_x = np.mgrid[:height, :width].astype(np.float32)
    row, column = (pixel_y // cell + 1).astype(int), (pixel_x // cell + 1).astype(int)
    distances, colours = [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = np.clip(row + dy, 0, rows - 1), np.clip(column + dx, 0, columns - 1)
            distances.append(np.hypot(ys[r, c] - pixel_y, xs[r, c] - pixel_x))
            at_y = np.clip(ys[r, c].astype(int), 0, height - 1)
            at_x = np.clip(xs[r, c].astype(int), 0, width - 1)
            colours.append(x[at_y, at_x])
    stacked = np.stack(distances)
    order = np.argsort(stacked, axis=0)
    nearest = np.take_along_axis(stacked, order[:2], 0)
    tile = np.take_along_axis(np.stack(colours), order[:1][..., None], 0)[0]
    grout = np.clip((nearest[1] - nearest[0]) - 1.0, 0, 1)[..., None]
    return tile * grout + np.array([0.93, 0.92, 0.88], np.float32) * (1 - grout)


def _neon(x: Picture, cover: Picture, random: Random) -> Picture:
    lines = np.clip(_edges(x, 0.8) * 1.5, 0, 1)[..., None]
    grey = x.mean(2, keepdims=True)
    hue = np.clip(grey + (x - grey) * 3.0 + 0.25, 0, 1)
    glow = _blurred(lines.repeat(3, 2) * hue, 2.2)
    return np.clip(np.array([0.03, 0.02, 0.08], np.float32) + lines * hue + 0.9 * glow, 0, 1)


def _wavy(x: Picture, cover: Picture, random: Random) -> Picture:
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    phase = random.uniform(0, 2 * np.pi, 2)
    shift_x = 3.0 * np.sin(rows * 2 * np.pi / 16 + phase[0])
    shift_y = 1.8 * np.sin(columns * 2 * np.pi / 20 + phase[1])
    at_x = np.clip(columns + shift_x, 0, width - 1)
    at_y = np.clip(rows + shift_y, 0, height - 1)
    left, top = np.floor(at_x).astype(int), np.floor(at_y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (at_x - left)[..., None], (at_y - top)[..., None]
    upper = x[top, left] * (1 - fx) + x[top, right] * fx
    lower = x[bottom, left] * (1 - fx) + x[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


LOOKS: dict[str, Callable[[Picture, Picture, Random], Picture]] = {
    "comic": _comic,
    "watercolor": _watercolor,
    "pixel": _pixel,
    "sketch": _sketch,
    "chalk": _chalk,
    "halftone": _halftone,
    "sepia": _sepia,
    "oil": _oil,
    "stitched": _stitched,
    "poster": _poster,
    "blueprint": _blueprint,
    "mosaic": _mosaic,
    "neon": _neon,
    "wavy": _wavy,
}


def repainted(pixels: np.ndarray, cover: np.ndarray, look: str, random: Random) -> np.ndarray:
    """Return a scene in a procedural look.

    Args:
        pixels: Plain scene, uint8 (height, width, 3), with both sides divisible by 8.
        cover: Share of each pixel that things cover, float (height, width) in 0..1.
        look: Key of ``LOOKS``.
        random: Generator of the look's grain.
    """
    x = pixels.astype(np.float32) / 255
    return np.asarray(_image(LOOKS[look](x, cover.astype(np.float32), random)))
