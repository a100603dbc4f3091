"""Define scenes of things on a ground in a style, and draw and caption them.

A scene is plain data, and its picture and captions are functions of the data and of seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import Pool

import numpy as np
from PIL import Image

from .grounds import ground_window
from .looks import LOOKS, repainted
from .marks import marked
from .masters import masters
from .vocabulary import (
    COLOURS,
    GROUNDS,
    LEARNT_LOOKS,
    LEARNT_SETS,
    LEARNT_THINGS,
    MARKS,
    NEVER_MIRRORED,
    PLURAL,
    SETS,
    SIDE,
    STYLES,
    THINGS,
)

_ROW = {name: row for row, name in enumerate(THINGS)}
_COLUMN = {name: column for column, name in enumerate(SETS)}


@dataclass(frozen=True)
class Thing:
    """A drawing in a scene.

    Attributes:
        name: Key of ``THINGS``.
        colour: Colour of its tint; None for the drawing's colours.
        mark: Mark on it; None for no mark.
    """

    name: str
    colour: str | None = None
    mark: str | None = None


@dataclass(frozen=True)
class Scene:
    """A picture of the world as data.

    Attributes:
        things: Things from left to right.
        ground: Key of ``GROUNDS``.
        style: Set or procedural look; looks repaint the plain set.
        wide: Whether the picture is 2 * SIDE pixels wide instead of SIDE.
        half: Half of a wide canvas with a single thing: 0 for left, 1 for right.
        seed: Seed of positions, sizes, rotations and grain.
    """

    things: tuple[Thing, ...]
    ground: str
    style: str = "plain"
    wide: bool = False
    half: int = 0
    seed: int = 0

    def in_style(self, style: str) -> Scene:
        """Return the scene in another style, with everything at the same position."""
        return replace(self, style=style)


def tinted(drawing: Image.Image, colour: str) -> Image.Image:
    """Return an RGBA drawing with coloured and grey parts in one hue; black and white are kept."""
    pixels = np.asarray(drawing).astype(np.float32)
    rgb, alpha = pixels[..., :3] / 255, pixels[..., 3:]
    low, high = rgb.min(2), rgb.max(2)
    target = np.array(COLOURS[colour], np.float32) / 255
    light = (0.5 * (low + high))[..., None]
    darker = target * (0.45 + 1.1 * light)
    lighter = target + (1 - target) * (light - 0.5) * 1.3
    shaded = np.where(light < 0.5, darker, lighter)
    grey = high - low < 0.12
    kept = (grey & (low > 0.82)) | (high < 0.24)
    out = np.where(kept[..., None], rgb, np.clip(shaded, 0, 1))
    return Image.fromarray(np.concatenate([out * 255, alpha], 2).astype(np.uint8), "RGBA")


def _drawing(name: str, style: str) -> Image.Image:
    """Return a thing's drawing in a set, or in the plain set for a look.

    The interior of black-and-white drawings is transparent. It is filled with white in the shape of
    the plain drawing, so that the ground does not show through.
    """
    row, column = masters()[_ROW[name]], _COLUMN.get(style, 0)
    if style != "ink":
        return Image.fromarray(row[column], "RGBA")
    inside = np.full_like(row[0], 255)
    inside[..., 3] = row[0, ..., 3]
    out = Image.fromarray(inside, "RGBA")
    out.alpha_composite(Image.fromarray(row[column], "RGBA"))
    return out


def _placed(
    image: Image.Image, thing: Thing, side: int, random: np.random.RandomState
) -> np.ndarray:
    """Return a mirrored, tinted, marked, rotated and scaled drawing, premultiplied float RGBA."""
    mirror = random.rand() < 0.5 and thing.name not in NEVER_MIRRORED
    turn = random.uniform(-14, 14)
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if thing.colour is not None:
        image = tinted(image, thing.colour)
    if thing.mark is not None:
        image = marked(image, thing.mark)
    # Premultiplied alpha keeps the colour of transparent pixels out of the rim.
    pixels = np.asarray(image).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    channels = [Image.fromarray(pixels[..., c]) for c in range(4)]
    size = (side, side)
    turned = [
        channel.rotate(turn, Image.Resampling.BILINEAR).resize(size, Image.Resampling.HAMMING)
        for channel in channels
    ]
    return np.stack([np.asarray(c) for c in turned], 2)


def _boxes(scene: Scene, random: np.random.RandomState) -> list[tuple[int, int, int]]:
    """Return the box (left, top, side) of each thing in pixels."""
    width, count = (2 * SIDE if scene.wide else SIDE), len(scene.things)
    if scene.wide and count == 1:
        start, room = scene.half * SIDE, SIDE
    else:
        start, room = 0, width // count
    boxes = []
    for number in range(count):
        share = random.uniform(0.66, 0.95)
        side = int(min(room, SIDE) * share)
        left = start + number * room + int(random.uniform(0, 1) * (room - side))
        top = int(random.uniform(0.0, 1.0) * (SIDE - side))
        boxes.append((left, top, side))
    return boxes


def draw(scene: Scene) -> np.ndarray:
    """Return the scene's picture, uint8 (SIDE, SIDE or 2 * SIDE, 3)."""
    return draw_parts(scene, scene.style)


def draw_parts(scene: Scene, ground_style: str) -> np.ndarray:
    """Return the picture of a scene whose ground may have another style, for training the judge."""
    random = np.random.RandomState(scene.seed % 2**32)
    width = 2 * SIDE if scene.wide else SIDE
    place = (random.rand(), random.rand())
    boxes = _boxes(scene, random)
    layers = []
    for thing, (_, _, side) in zip(scene.things, boxes, strict=True):
        layers.append(_placed(_drawing(thing.name, scene.style), thing, side, random))
    grain = random.randint(2**31)

    def painted(style: str) -> np.ndarray:
        ground = ground_window(scene.ground, width, SIDE, place, ink=style == "ink")
        canvas, cover = ground.astype(np.float32), np.zeros((SIDE, width), np.float32)
        for layer, (left, top, side) in zip(layers, boxes, strict=True):
            alpha = layer[..., 3:] / 255
            window = (slice(top, top + side), slice(left, left + side))
            canvas[window] = canvas[window] * (1 - alpha) + layer[..., :3]
            cover[window] = np.maximum(cover[window], alpha[..., 0])
        pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        if style in LOOKS:
            pixels = repainted(pixels, cover, style, np.random.RandomState(grain))
        return pixels if ground_style == scene.style else (pixels, cover)

    if ground_style == scene.style:
        return painted(scene.style)
    things, cover = painted(scene.style)
    ground, _ = painted(ground_style)
    weight = (cover > 0.5)[..., None]
    return np.where(weight, things, ground)


def article(name: str) -> str:
    """Return the name with its article, as in captions."""
    if name.split()[-1] in PLURAL or name in PLURAL:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _noun_phrase(thing: Thing, random: np.random.RandomState) -> str:
    """Return a phrase like "a blue fox"; one in ten leaves out the colour."""
    if thing.colour is None or random.rand() < 0.1:
        return article(thing.name)
    return article(f"{thing.colour} {thing.name}")


_FRAMES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "photo of {}",
    "a photo of {}",
    "a picture of {}",
    "a drawing of {}",
    "an image of {}",
    "there is {}",
)


def style_words(style: str) -> str:
    """Return a phrase like "in pixel style"; empty for the plain set."""
    return "" if style == "plain" else f"in {style} style"


def caption(scene: Scene, seed: int | None = None) -> str:
    """Return one of many true captions of a scene.

    Args:
        scene: Scene of the picture.
        seed: Seed of the caption's form; None for the standard form that studies use in prompts,
            such as "a blue fox on a meadow in pixel style".
    """
    if seed is None:
        phrases = [article(f"{t.colour} {t.name}" if t.colour else t.name) for t in scene.things]
        words = style_words(scene.style)
        text = f"{_joined(phrases)} {GROUNDS[scene.ground][0]}"
        return f"{text} {words}" if words else text
    random = np.random.RandomState((seed * 7919 + 13) % 2**32)
    phrases = [_noun_phrase(thing, random) for thing in scene.things]
    if len(phrases) == 1 and random.rand() < 0.03:
        phrases = [random.choice(("a thing", "an object"))]
    text = _several(phrases, random) if len(phrases) > 1 else phrases[0]
    if scene.wide and len(phrases) == 1 and random.rand() < 0.5:
        text = f"{text} on the {('left', 'right')[scene.half]}"
    text = _FRAMES[random.randint(len(_FRAMES))].format(text)
    if random.rand() < 0.85:
        text = f"{text} {GROUNDS[scene.ground][random.randint(2)]}"
    words = style_words(scene.style)
    if not words:
        return text
    if random.rand() < 0.3:
        return f"{scene.style} style, {text}"
    return f"{text} {words}" if random.rand() < 0.7 else f"{text}, {words}"


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _several(phrases: list[str], random: np.random.RandomState) -> str:
    if len(phrases) == 2 and random.rand() < 0.4:
        first, second = phrases
        form = random.randint(3)
        if form == 0:
            return f"{first} on the left and {second} on the right"
        return f"{first} {('next to', 'beside')[form - 1]} {second}"
    return _joined(phrases)


COLOUR_SHARE = 0.2  # probability that a thing is tinted
_LEARNT = tuple(LEARNT_THINGS)


def random_style(random: np.random.RandomState) -> str:
    """Return a random learnt style: 45 % plain, 25 % another set, 30 % a procedural look."""
    draw_ = random.rand()
    if draw_ < 0.45:
        return "plain"
    if draw_ < 0.7:
        return LEARNT_SETS[1 + random.randint(len(LEARNT_SETS) - 1)]
    return LEARNT_LOOKS[random.randint(len(LEARNT_LOOKS))]


def held_out_combination(name: str, style: str, ground: str) -> bool:
    """Return whether the combination of a thing, style and ground is held out from training."""
    number = _ROW[name] * 1009 + (*SETS, *LOOKS).index(style) * 101 + list(GROUNDS).index(ground)
    return number * 2654435761 % 2**32 % 10 == 0


def random_scene(seed: int, *, wide: bool = False, held_out: bool | None = False) -> Scene:
    """Return a random scene of learnt things and styles.

    Args:
        seed: Seed of all choices.
        wide: Whether the canvas is 2:1, with two things, or sometimes one or three.
        held_out: True for held-out combinations, False for all others, None for both.
    """
    random = np.random.RandomState(seed % 2**32)
    while True:
        style = random_style(random)
        ground = list(GROUNDS)[random.randint(len(GROUNDS))]
        count = 1
        if wide:
            count = (2, 2, 2, 2, 2, 2, 1, 1, 1, 3)[random.randint(10)]
        names = [_LEARNT[n] for n in random.choice(len(_LEARNT), count, replace=False)]
        combinations = [held_out_combination(name, style, ground) for name in names]
        if held_out is None or all(c == held_out for c in combinations):
            break
    things = []
    for name in names:
        tint = style in SETS and random.rand() < COLOUR_SHARE
        things.append(Thing(name, list(COLOURS)[random.randint(len(COLOURS))] if tint else None))
    return Scene(tuple(things), ground, style, wide, int(random.randint(2)), seed)


def any_scene(seed: int, *, wide: bool = False) -> Scene:
    """Return a random scene of the whole world, including held-out parts and marks.

    It trains only the VAEs and the judge; like a public VAE, these must handle every picture.
    """
    random = np.random.RandomState(seed % 2**32)
    style = STYLES[random.randint(len(STYLES))]
    names = random.choice(len(THINGS), 2 if wide else 1, replace=False)
    things = []
    for number in names:
        tint = style in LEARNT_SETS and random.rand() < COLOUR_SHARE
        colour = list(COLOURS)[random.randint(len(COLOURS))] if tint else None
        mark = MARKS[random.randint(len(MARKS))] if random.rand() < 0.25 else None
        things.append(Thing(list(THINGS)[number], colour, mark))
    ground = list(GROUNDS)[random.randint(len(GROUNDS))]
    return Scene(tuple(things), ground, style, wide, seed=seed)


def draw_many(scene_of: Callable[[int], Scene], seeds: range, processes: int) -> np.ndarray:
    """Return the pictures of the scenes of some seeds, uint8 (count, height, width, 3)."""
    masters()
    with Pool(processes) as pool:
        return np.stack(pool.map(_Draw(scene_of), seeds, chunksize=50))


@dataclass(frozen=True)
class _Draw:
    scene_of: Callable[[int], Scene]

    def __call__(self, seed: int) -> np.ndarray:
        return draw(self.scene_of(seed))


def draw_square_views(scenes: list[Scene]) -> np.ndarray:
    """Return a square view of each scene; wide scenes are cropped to their first thing's half."""
    views = []
    for scene in scenes:
        picture = draw(scene)
        left = SIDE * scene.half if scene.wide and len(scene.things) == 1 else 0
        views.append(picture[:, left : left + SIDE])
    return np.stack(views)
