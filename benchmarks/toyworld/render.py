"""The renderer of the toy world: a Scene becomes a uint8 picture (height, width, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .shapes import Pen, draw_class, draw_mark
from .styles import STYLE_FUNCTIONS, Layers
from .world import COLOURS, STYLES, Scene

SCALE = 2  # all layers are drawn at twice the size and averaged at the end


@dataclass(frozen=True)
class Truth:
    """A render with what no caption says.

    Attributes:
        image: uint8 (height, width, 3).
        mask: float32 (height, width), 1 on objects as drawn in this style.
    """

    image: np.ndarray
    mask: np.ndarray


@lru_cache(maxsize=8)
def _regular_ground(background: str, width: int, height: int) -> np.ndarray:
    """The part of a background that no seed changes, float32 (2 height, 2 width, 3) in 0..255."""
    y, x = np.mgrid[0 : height * SCALE, 0 : width * SCALE].astype(np.float32) / SCALE
    if background == "sand":
        ripple = np.sin(2 * np.pi * (y / 12.8 + 0.22 * np.sin(2 * np.pi * x / 32.0)))
        wave = np.clip((ripple - 0.35) / 0.3, 0, 1)[..., None]
        return (1 - wave) * np.float32([232, 203, 150]) + wave * np.float32([196, 158, 100])
    if background == "snow":
        return np.ones_like(x)[..., None] * np.float32([232, 240, 248])
    if background == "night":
        shade = (y / height)[..., None]
        return (1 - shade) * np.float32([14, 14, 44]) + shade * np.float32([34, 26, 72])
    row = np.floor(y / 8)
    column = np.mod(x + 8 * np.mod(row, 2), 16)
    mortar = ((np.mod(y, 8) < 1.5) | (column < 1.5))[..., None].astype(np.float32)
    return (1 - mortar) * np.float32([150, 108, 92]) + mortar * np.float32([212, 202, 192])


def _ground(scene: Scene, rng: np.random.RandomState) -> np.ndarray:
    """The background alone, float32 (height, width, 3) in 0..255 at drawing size."""
    base = _regular_ground(scene.background, scene.width, scene.height)
    height, width = base.shape[:2]
    if scene.background == "snow":
        flakes = _scatter(rng, width, height, spacing=16, radius=3.0)
        return (1 - flakes) * base + flakes * np.float32([150, 190, 232])
    if scene.background == "night":
        stars = _scatter(rng, width, height, spacing=16, radius=1.7)
        return (1 - stars) * base + stars * np.float32([255, 246, 190])
    return base


def _scatter(
    rng: np.random.RandomState, width: int, height: int, *, spacing: int, radius: float
) -> np.ndarray:
    """A jittered lattice of dots, float32 (height, width, 1) at drawing size."""
    pen = Pen(width, height, (0.0, 0.0), float(SCALE), oversample=2)
    for row in range(-1, height // SCALE // spacing + 1):
        for column in range(-1, width // SCALE // spacing + 1):
            shift = spacing / 2 if row % 2 else 0.0
            jitter = rng.uniform(-2.0, 2.0, 2)
            x, y = column * spacing + shift + 8 + jitter[0], row * spacing + 8 + jitter[1]
            pen.ellipse(x, y, radius, radius)
    return pen.mask()[..., None]


def _centres(scene: Scene, rng: np.random.RandomState) -> list[tuple[float, float, float]]:
    """Centre and radius of each thing, in pixels of the picture."""
    count = len(scene.things)
    cell = scene.width / count
    side = min(cell, scene.height)
    places = []
    for index in range(count):
        # A lone object on a wide canvas may stand anywhere along it.
        slack = max(0.0, cell - side) / 2
        radius = side * rng.uniform(0.32, 0.37)
        x = cell * (index + 0.5) + rng.uniform(-1, 1) * (slack + 0.05 * side)
        y = scene.height / 2 + rng.uniform(-0.05, 0.06) * side
        places.append((x, y, radius))
    return places


def _layers(scene: Scene) -> Layers:
    """The scene in layers at drawing size, before any style."""
    rng = np.random.RandomState(scene.seed)
    places = _centres(scene, rng)
    ground = _ground(scene, rng)
    height, width = ground.shape[:2]
    mask = np.zeros((height, width, 1), np.float32)
    fill = ground.copy()
    marks = np.zeros_like(mask)
    for thing, (x, y, radius) in zip(scene.things, places, strict=True):
        pen = Pen(width, height, (x * SCALE, y * SCALE), radius * SCALE)
        draw_class(pen, thing.kind)
        own = pen.mask()[..., None]
        colour = np.float32(COLOURS[thing.colour])
        rows = np.arange(height, dtype=np.float32)[:, None, None] - np.float32(y * SCALE)
        columns = np.arange(width, dtype=np.float32)[None, :, None] - np.float32(x * SCALE)
        light = (rows + 0.6 * columns) / np.float32(radius * SCALE)
        shade = np.clip(1.0 - 0.16 * light, 0.75, 1.25)
        fill = (1 - own) * fill + own * np.clip(colour * shade, 0, 255)
        if thing.mark is not None:
            pen = Pen(width, height, (x * SCALE, y * SCALE), radius * SCALE)
            inside, tint = draw_mark(pen, thing.mark)
            drawn = pen.mask()[..., None] * (own if inside else 1.0)
            fill = (1 - drawn) * fill + drawn * np.float32(tint)
            marks = np.maximum(marks, drawn)
            own = np.maximum(own, drawn)
        mask = np.maximum(mask, own)
    return Layers(ground, fill, mask, marks, np.random.RandomState(scene.seed ^ 0x5EED))


def _reduce(image: np.ndarray) -> np.ndarray:
    """Average SCALE x SCALE pixels, (height, width, channel)."""
    parts = [image[i::SCALE, j::SCALE] for i in range(SCALE) for j in range(SCALE)]
    return sum(parts[1:], parts[0]) / np.float32(SCALE**2)


def render_truth(scene: Scene, ground_style: str | None = None) -> Truth:
    """Render a scene with its object mask; a ``ground_style`` styles the ground apart.

    Mixed pictures exist for the judge alone, which must read both places independently.
    """
    for style in (scene.style, ground_style or scene.style):
        if style not in STYLES:
            raise ValueError(f"Unknown style {style!r}; the toy world's styles are {STYLES}.")
    image, mask = STYLE_FUNCTIONS[scene.style](_layers(scene))
    if ground_style is not None and ground_style != scene.style:
        bare = _layers(scene)
        bare = Layers(bare.ground, bare.ground, bare.mask * 0, bare.marks * 0, bare.rng)
        ground_image, _ = STYLE_FUNCTIONS[ground_style](bare)
        image = mask * image + (1 - mask) * ground_image
    pixels = np.clip(np.rint(_reduce(image)), 0, 255).astype(np.uint8)
    return Truth(pixels, _reduce(mask)[..., 0])


def render(scene: Scene) -> np.ndarray:
    """Render a scene, uint8 (height, width, 3)."""
    return render_truth(scene).image


def render_pil(scene: Scene, zoom: int = 1) -> Image.Image:
    """Render a scene as a PIL image, enlarged with hard pixels."""
    picture = Image.fromarray(render(scene))
    return picture.resize((scene.width * zoom, scene.height * zoom), Image.Resampling.NEAREST)
