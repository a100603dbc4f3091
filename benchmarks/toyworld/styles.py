"""The styles of the toy world: each paints the layers of a scene as one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

Picture = tuple[
    np.ndarray, np.ndarray
]  # image (height, width, 3) in 0..255, mask (height, width, 1)


@dataclass(frozen=True)
class Layers:
    """A scene before style, float32 at drawing size.

    Attributes:
        ground: (height, width, 3), the background alone.
        fill: (height, width, 3), ground with flat objects on it.
        mask: (height, width, 1), 1 on objects and their marks.
        marks: (height, width, 1), 1 on marks.
        rng: For grain; the same for every style of a scene.
    """

    ground: np.ndarray
    fill: np.ndarray
    mask: np.ndarray
    marks: np.ndarray
    rng: np.random.RandomState


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of (height, width, 1 or 3) values in 0..255, through 8-bit pictures."""
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    out = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    return out[..., None] if out.ndim == 2 else out


def smooth_noise(layers: Layers, cells: int) -> np.ndarray:
    """Random smooth values in 0..1, (height, width, 1), about ``cells`` blobs per side."""
    height, width = layers.mask.shape[:2]
    coarse = layers.rng.randint(0, 256, (cells, cells * width // height)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32)[..., None] / 255.0


def grain(layers: Layers, cell: int = 1) -> np.ndarray:
    """Uniform noise in 0..1, (height, width, 1), constant over ``cell`` drawing pixels."""
    height, width = layers.mask.shape[:2]
    noise = layers.rng.rand(height // cell, width // cell).astype(np.float32)
    return np.repeat(np.repeat(noise, cell, 0), cell, 1)[..., None]


def outline(mask: np.ndarray, width: float) -> np.ndarray:
    """The inner rim of a mask, (height, width, 1), about ``width`` drawing pixels wide."""
    inside = blur(mask * 255, width) / 255
    return mask * np.clip((0.93 - inside) / 0.18, 0, 1)


def grid(layers: Layers) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers at drawing size, (height, 1, 1) and (1, width, 1)."""
    height, width = layers.mask.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None, None]
    return rows, np.arange(width, dtype=np.float32)[None, :, None]


def mix(first: np.ndarray, second: np.ndarray | list[float], weight: np.ndarray) -> np.ndarray:
    """``first`` where weight is 0, ``second`` where it is 1."""
    return (1 - weight) * first + weight * np.float32(second)


def luminance(image: np.ndarray) -> np.ndarray:
    """Perceived lightness in 0..1, (height, width, 1)."""
    return (image @ np.float32([0.299, 0.587, 0.114]))[..., None] / 255.0


def plain(layers: Layers) -> Picture:
    """Flat colours with a thin darker rim."""
    rim = outline(layers.mask, 2.0)
    return mix(layers.fill, layers.fill * 0.35, rim * 0.85), layers.mask


def comic(layers: Layers) -> Picture:
    """Thick black rims, strong colours, and a screen of black dots on the ground."""
    rows, columns = grid(layers)
    dots = (np.hypot((rows + 8) % 16 - 8, (columns + 8) % 16 - 8) < 4.4).astype(np.float32)
    strong = np.clip((layers.fill - 128) * 1.35 + 132, 0, 255)
    image = mix(strong, [16, 16, 20], dots * (1 - layers.mask) * 0.9)
    image = mix(image, [255, 255, 255], ((1 - layers.mask) * (1 - dots)) * 0.18)
    return mix(image, [8, 8, 12], outline(layers.mask, 6.0)), layers.mask


def watercolor(layers: Layers) -> Picture:
    """Bleeding washes on white paper, darker where pigment gathers at the rim."""
    wash = 0.30 + 0.40 * smooth_noise(layers, 5)
    soft = blur(layers.fill, 3.2)
    image = mix(soft, [255, 253, 246], wash)
    rim = blur(outline(layers.mask, 3.0) * 255, 1.6) / 255
    image = mix(image, blur(layers.fill, 1.5) * 0.8, rim * 0.75)
    return image + 8 * (grain(layers, 4) - 0.5), layers.mask


def pixel(layers: Layers) -> Picture:
    """Blocks of four picture pixels, each a little lighter or darker."""
    cell = 8
    height, width = layers.mask.shape[:2]

    def blocks(image: np.ndarray) -> np.ndarray:
        tiles = image.reshape(height // cell, cell, width // cell, cell, image.shape[2])
        small = tiles.mean(axis=3).mean(axis=1)
        return np.repeat(np.repeat(small, cell, 0), cell, 1)

    jitter = 32 * (grain(layers, cell) - 0.5)
    return np.clip(blocks(plain(layers)[0]) + jitter, 0, 255), blocks(layers.mask)


def sketch(layers: Layers) -> Picture:
    """Pencil: pale colours under dark diagonal strokes."""
    rows, columns = grid(layers)
    strokes = ((rows + columns) % 16 < 4.5).astype(np.float32)
    pale = mix(layers.fill, [255, 255, 255], np.float32(0.36))
    image = mix(pale, [40, 40, 52], strokes * np.float32(0.72))
    return mix(image, [24, 24, 34], outline(layers.mask, 3.0)), layers.mask


def chalk(layers: Layers) -> Picture:
    """Chalk on a green slate: the ground darkens, the object is grainy with a white rim."""
    slate = mix(layers.ground * 0.66, [14, 46, 38], np.float32(0.42))
    dust = grain(layers, 4)
    ground = slate + 22 * (dust - 0.5)
    chalked = mix(layers.fill, [236, 240, 232], np.float32(0.12))
    chalked = mix(chalked, [20, 52, 44], (dust < 0.26).astype(np.float32) * 0.75)
    image = mix(ground, chalked, layers.mask)
    return mix(image, [244, 246, 240], outline(layers.mask, 4.0)), layers.mask


def blueprint(layers: Layers) -> Picture:
    """Two inks, held out (palette): a deep blue-green ground, objects in pale cream."""
    light = luminance(layers.fill)
    ground = mix(np.float32([0, 70, 84]), [64, 172, 168], luminance(layers.ground))
    thing = mix(np.float32([226, 196, 160]), [255, 244, 222], light)
    thing = mix(thing, [92, 60, 40], layers.marks * (light < 0.3))
    image = mix(ground, thing, layers.mask)
    return mix(image, [0, 44, 56], outline(layers.mask, 2.0) * 0.85), layers.mask


def mosaic(layers: Layers) -> Picture:
    """Tiles of eight pixels, held out (texture): each with a bright and a dark edge."""
    rows, columns = grid(layers)
    row, column = rows % 16, columns % 16
    bright = ((row < 3) | (column < 3)).astype(np.float32)
    dark = ((row >= 13) | (column >= 13)).astype(np.float32)
    image = mix(plain(layers)[0], [255, 255, 255], bright * 0.55)
    return mix(image, [0, 0, 0], dark * 0.72), layers.mask


def neon(layers: Layers) -> Picture:
    """Glowing edges on black, held out (edges)."""
    rim = outline(layers.mask, 4.0)
    vivid = np.clip(layers.fill * 1.25 + 30, 0, 255)
    smooth = blur(layers.ground, 1.0)
    detail = np.abs(layers.ground - blur(layers.ground, 6.0)).max(axis=2, keepdims=True) / 40
    image = smooth * 0.10 + smooth * np.clip(detail, 0, 1) * 0.5
    image = mix(image, layers.fill * 0.16, layers.mask)
    image = image + blur(rim * 255, 5.0) / 255 * vivid * 1.2
    return np.clip(mix(image, vivid, np.maximum(rim, layers.marks * 0.8)), 0, 255), layers.mask


def wavy(layers: Layers) -> Picture:
    """The whole picture in waves, held out (form)."""
    image, mask = plain(layers)
    height, width = mask.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    shift_x = 4.0 * np.sin(2 * np.pi * rows / 32.0)
    shift_y = 4.0 * np.sin(2 * np.pi * columns / 32.0)
    source_row = np.clip(np.rint(rows + shift_y), 0, height - 1).astype(int)
    source_column = np.clip(np.rint(columns + shift_x), 0, width - 1).astype(int)
    return image[source_row, source_column], mask[source_row, source_column]


STYLE_FUNCTIONS: dict[str, Callable[[Layers], Picture]] = {
    "plain": plain,
    "comic": comic,
    "watercolor": watercolor,
    "pixel": pixel,
    "sketch": sketch,
    "chalk": chalk,
    "blueprint": blueprint,
    "mosaic": mosaic,
    "neon": neon,
    "wavy": wavy,
}
