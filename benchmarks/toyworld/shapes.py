"""Outlines of the toy world's objects and marks, in units of the object's radius."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]


class Pen:
    """Draws anti-aliased masks: coordinates in radii around an object's centre, y downwards."""

    def __init__(self, width: int, height: int, centre: Point, radius: float, oversample: int = 2):
        self.size = (width, height)
        self.oversample = oversample
        self.centre, self.radius = centre, radius
        self.image = Image.new("L", (width * oversample, height * oversample), 0)
        self.draw = ImageDraw.Draw(self.image)

    def _at(self, point: Point) -> Point:
        return (
            (self.centre[0] + point[0] * self.radius) * self.oversample,
            (self.centre[1] + point[1] * self.radius) * self.oversample,
        )

    def polygon(self, points: list[Point], value: int = 255) -> None:
        """Fill a polygon; value 0 cuts it out."""
        self.draw.polygon([self._at(p) for p in points], fill=value)

    def ellipse(self, x: float, y: float, rx: float, ry: float, value: int = 255) -> None:
        """Fill an ellipse around (x, y)."""
        self.draw.ellipse([self._at((x - rx, y - ry)), self._at((x + rx, y + ry))], fill=value)

    def box(self, left: float, top: float, right: float, bottom: float, value: int = 255) -> None:
        """Fill a rectangle."""
        self.draw.rectangle([self._at((left, top)), self._at((right, bottom))], fill=value)

    def mask(self) -> np.ndarray:
        """The mask drawn so far, float32 (height, width) in 0..1."""
        small = self.image.reduce(self.oversample)
        return np.asarray(small, dtype=np.float32) / 255.0


def _star_points(points: int, inner: float) -> list[Point]:
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.12, inner)
    return [
        (float(r * np.cos(a)), float(r * np.sin(a))) for a, r in zip(angles, radii, strict=True)
    ]


def _heart_points() -> list[Point]:
    t = np.linspace(0, 2 * np.pi, 60)
    x = 16 * np.sin(t) ** 3 / 16.0
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.5
    return [(float(a), float(b) - 0.1) for a, b in zip(x, y, strict=True)]


def draw_class(pen: Pen, kind: str) -> None:
    """Draw the silhouette of a class."""
    if kind == "ball":
        pen.ellipse(0, 0, 0.95, 0.95)
    elif kind == "star":
        pen.polygon(_star_points(5, 0.5))
    elif kind == "heart":
        pen.polygon(_heart_points())
    elif kind == "moon":
        pen.ellipse(-0.05, 0, 1.0, 1.0)
        pen.ellipse(0.48, -0.12, 0.78, 0.78, 0)
    elif kind == "cross":
        pen.box(-0.34, -1.0, 0.34, 1.0)
        pen.box(-1.0, -0.34, 1.0, 0.34)
    elif kind == "tree":
        pen.polygon([(0, -1.1), (0.85, 0.5), (-0.85, 0.5)])
        pen.box(-0.2, 0.4, 0.2, 1.05)
    elif kind == "house":
        pen.polygon([(0, -1.05), (1.05, -0.15), (-1.05, -0.15)])
        pen.box(-0.78, -0.2, 0.78, 0.95)
        pen.box(-0.22, 0.3, 0.22, 0.96, 0)
    elif kind == "ring":
        pen.ellipse(0, 0, 1.0, 1.0)
        pen.ellipse(0, 0, 0.5, 0.5, 0)
    elif kind == "fish":
        pen.ellipse(-0.2, 0, 0.85, 0.55)
        pen.polygon([(0.35, 0), (1.1, -0.7), (1.1, 0.7)])
        pen.ellipse(-0.62, -0.14, 0.12, 0.12, 0)
    elif kind == "cup":
        pen.ellipse(0.55, 0, 0.52, 0.5)
        pen.ellipse(0.55, 0, 0.26, 0.24, 0)
        pen.polygon([(-0.95, -0.85), (0.55, -0.85), (0.4, 0.9), (-0.8, 0.9)])
    elif kind == "boat":
        pen.polygon([(-1.05, 0.35), (1.05, 0.35), (0.65, 0.95), (-0.65, 0.95)])
        pen.box(-0.09, -1.05, 0.09, 0.4)
        pen.polygon([(0.15, -1.0), (0.15, 0.2), (0.9, 0.2)])
    elif kind == "arrow":
        pen.polygon([(1.1, 0), (0.1, -0.85), (0.1, 0.85)])
        pen.box(-1.05, -0.3, 0.15, 0.3)
    elif kind == "umbrella":
        pen.ellipse(0, 0, 1.05, 1.0)
        pen.box(-1.1, 0.0, 1.1, 1.1, 0)
        pen.box(-0.09, -0.1, 0.09, 1.0)
        pen.box(-0.45, 0.84, 0.09, 1.02)
    elif kind == "crown":
        pen.polygon(
            [(-1, 0.8), (-1, -0.8), (-0.45, 0.0), (0, -1.0), (0.45, 0.0), (1, -0.8), (1, 0.8)]
        )
    else:
        raise ValueError(f"Unknown class {kind!r}; the toy world's classes are in world.CLASSES.")


def draw_mark(pen: Pen, mark: str) -> tuple[bool, tuple[int, int, int]]:
    """Draw a mark; returns whether it stays inside the silhouette, and its colour."""
    white, black = (250, 250, 250), (16, 16, 20)
    if mark == "band":
        pen.box(-1.2, -0.28, 1.2, 0.28)
        return True, white
    if mark == "dots":
        for x in (-0.62, 0.0, 0.62):
            for y in (-0.62, 0.0, 0.62):
                pen.ellipse(x, y, 0.17, 0.17)
        return True, white
    if mark == "face":
        pen.ellipse(-0.36, -0.25, 0.2, 0.24)
        pen.ellipse(0.36, -0.25, 0.2, 0.24)
        pen.ellipse(0, 0.3, 0.42, 0.3)
        pen.box(-0.5, -0.02, 0.5, 0.3, 0)
        return False, black
    if mark == "patch":
        pen.box(-0.36, -0.36, 0.36, 0.36)
        return False, black
    if mark == "hat":
        pen.box(-0.75, -0.95, 0.75, -0.72)
        pen.box(-0.45, -1.35, 0.45, -0.9)
        return False, black
    if mark == "halo":
        pen.ellipse(0, -1.1, 0.75, 0.28)
        pen.ellipse(0, -1.1, 0.47, 0.1, 0)
        return False, (255, 150, 20)
    if mark == "legs":
        for x in (-0.45, 0.25):
            pen.box(x, 0.75, x + 0.2, 1.35)
            pen.box(x, 1.2, x + 0.45, 1.38)
        return False, black
    if mark == "wings":
        pen.polygon([(-0.5, 0.1), (-1.4, -0.75), (-1.4, 0.35)])
        pen.polygon([(0.5, 0.1), (1.4, -0.75), (1.4, 0.35)])
        return False, white
    raise ValueError(f"Unknown mark {mark!r}; the toy world's marks are in world.MARKS.")
