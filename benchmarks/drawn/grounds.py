"""Draw grounds: large patterned pictures, in colour or in black ink, from which scenes are cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .vocabulary import GROUNDS, SIDE

# A scene's ground is a random window of a larger picture.
WIDTH, HEIGHT = 4 * SIDE, 2 * SIDE
SCALE = 2  # supersampling
Colour = tuple[int, int, int]
WHITE, BLACK = (255, 255, 255), (34, 34, 34)


class _Canvas:
    """A supersampled drawing; with ``ink``, every base is white and every pattern black."""

    def __init__(self, base: Colour, ink: bool, seed: int) -> None:
        self.ink, self.random = ink, np.random.RandomState(seed)
        size = (WIDTH * SCALE, HEIGHT * SCALE)
        self.image = Image.new("RGB", size, WHITE if ink else base)
        self.pen = ImageDraw.Draw(self.image)

    def colour(self, colour: Colour) -> Colour:
        """Return the colour in which this canvas draws a pattern."""
        return BLACK if self.ink else colour

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line through points in unscaled pixels."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(scaled, self.colour(colour), max(1, round(width * SCALE)), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a disc."""
        box = [(v * SCALE) for v in (x - radius, y - radius, x + radius, y + radius)]
        self.pen.ellipse(box, self.colour(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle; with ``ink``, draw its outline only."""
        corners = [left * SCALE, top * SCALE, right * SCALE, bottom * SCALE]
        if self.ink:
            self.pen.rectangle(corners, outline=BLACK, width=SCALE)
        else:
            self.pen.rectangle(corners, colour)

    def places(self, spacing: float) -> list[tuple[float, float]]:
        """Return jittered places about ``spacing`` pixels apart, from top to bottom."""
        found = []
        for y in np.arange(-spacing, HEIGHT + spacing, spacing):
            for x in np.arange(-spacing, WIDTH + spacing, spacing):
                dx, dy = self.random.uniform(-0.2, 0.2, 2) * spacing
                found.append((x + dx, y + dy))
        return sorted(found, key=lambda place: place[1])

    def pixels(self) -> np.ndarray:
        """Return the picture at its own size, uint8 (HEIGHT, WIDTH, 3)."""
        return np.asarray(self.image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def _meadow(c: _Canvas) -> None:
    for x, y in c.places(14):
        c.line([(x, y), (x - 3, y - 7)], (112, 180, 84), 2.0)
        c.line([(x + 1, y), (x + 2, y - 9)], (112, 180, 84), 2.0)
        c.line([(x + 2, y), (x + 6, y - 6)], (112, 180, 84), 2.0)


def _sand(c: _Canvas) -> None:
    for x, y in c.places(20):
        steps = np.linspace(0, np.pi, 9)
        c.line([(x + 16 * s / np.pi, y - 3 * np.sin(s)) for s in steps], (206, 176, 112), 1.6)


def _snow(c: _Canvas) -> None:
    for x, y in c.places(20):
        size = c.random.uniform(3.0, 4.0)
        for angle in (0, np.pi / 3, 2 * np.pi / 3):
            dx, dy = size * np.cos(angle), size * np.sin(angle)
            c.line([(x - dx, y - dy), (x + dx, y + dy)], (172, 202, 232), 1.5)


def _water(c: _Canvas) -> None:
    xs = np.arange(-8, WIDTH + 8, 2)
    for number, y in enumerate(np.arange(0, HEIGHT + 12, 10)):
        shift = c.random.uniform(0, 24)
        colour = (60, 140, 208) if number % 2 else (176, 226, 250)
        c.line([(x, y + 2.2 * np.sin((x + shift) * np.pi / 12)) for x in xs], colour, 1.8)


def _bricks(c: _Canvas) -> None:
    for row, y in enumerate(np.arange(0, HEIGHT + 12, 12)):
        c.line([(0, y), (WIDTH, y)], (238, 212, 192), 1.8)
        for x in np.arange(-12 + 12 * (row % 2), WIDTH + 24, 24):
            c.line([(x, y), (x, y + 12)], (238, 212, 192), 1.8)


def _night(c: _Canvas) -> None:
    for x, y in c.places(20):
        c.dot(x, y, c.random.uniform(1.2, 2.2), (250, 236, 160))


def _wood(c: _Canvas) -> None:
    for y in np.arange(0, HEIGHT + 16, 16):
        c.line([(0, y), (WIDTH, y)], (134, 84, 44), 2.0)
        for number, x in enumerate(np.arange(c.random.uniform(0, 40), WIDTH, 40)):
            dy = (5, 11)[number % 2]
            c.line([(x, y + dy), (x + 26, y + dy)], (166, 116, 70), 1.6)


def _tiles(c: _Canvas) -> None:
    for row, y in enumerate(np.arange(0, HEIGHT, 16)):
        for column, x in enumerate(np.arange(0, WIDTH, 16)):
            if (row + column) % 2:
                c.box(x, y, x + 16, y + 16, (150, 196, 190))


def _sunset(c: _Canvas) -> None:
    bands = ((255, 204, 112), (255, 168, 104), (248, 130, 120), (216, 104, 148), (160, 92, 170))
    for row, y in enumerate(np.arange(0, HEIGHT, 12)):
        # The bands are repeated forwards and backwards, so that every window shows most of them.
        colour = (*bands, *bands[-2:0:-1])[row % 8]
        if c.ink:
            c.line([(0, y), (WIDTH, y)], BLACK, 1.0)
        else:
            c.box(0, y, WIDTH, y + 12, colour)


def _paper(c: _Canvas) -> None:
    for y in np.arange(6, HEIGHT, 12):
        c.line([(0, y), (WIDTH, y)], (150, 176, 232), 1.2)


_PATTERNS: dict[str, tuple[Colour, Callable[[_Canvas], None]]] = {
    "meadow": ((162, 214, 118), _meadow),
    "sand": ((240, 218, 164), _sand),
    "snow": ((240, 246, 252), _snow),
    "water": ((112, 188, 236), _water),
    "bricks": ((206, 126, 102), _bricks),
    "night": ((58, 66, 122), _night),
    "wood": ((196, 146, 94), _wood),
    "tiles": ((236, 242, 236), _tiles),
    "sunset": ((255, 204, 112), _sunset),
    "paper": ((252, 248, 236), _paper),
}


@cache
def ground_picture(name: str, ink: bool = False) -> np.ndarray:
    """Return a ground's large picture, uint8 (HEIGHT, WIDTH, 3).

    Args:
        name: Key of ``GROUNDS``.
        ink: Whether the pattern is black on white, for the black-and-white set.
    """
    base, draw = _PATTERNS[name]
    canvas = _Canvas(base, ink, seed=list(GROUNDS).index(name))
    draw(canvas)
    return canvas.pixels()


def ground_window(name: str, width: int, height: int, place: tuple[float, float], ink: bool):
    """Return a window of a ground, uint8 (height, width, 3), at a relative ``place`` in 0..1."""
    picture = ground_picture(name, ink)
    left = int(place[0] * (WIDTH - width))
    top = int(place[1] * (HEIGHT - height))
    return picture[top : top + height, left : left + width]
