"""Pictures in rows and columns, each row and column named on a plain margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..bridge.node_output import warn_on_node

PAPER, INK = (250, 249, 246), (40, 40, 44)
_GAP = 6
"""Pixels between pictures, and around labels."""
_SMALLEST_LETTERS, _LETTERS_PER_SIDE = 12, 20
"""A label's size in pixels is the picture's shorter side over the second, at least the first."""
_LETTERS_BESIDE = 8
"""A row's label may be that many letters' sizes wide where the pictures are narrow."""
_MOST_LINES = 4
# Pillow's own font, which comes first, has the letters of English alone. Of these, found by name
# in the system's folders, the first that has all letters of the labels is taken.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "segoeui.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "YuGothR.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "seguisym.ttf",
)
_NO_LETTER = "\U0010ffff"


@dataclass(frozen=True)
class _Label:
    """A name in lines, in a font that has its letters."""

    lines: list[str]
    font: ImageFont.FreeTypeFont

    @property
    def line(self) -> int:
        """Return the height of a line."""
        return sum(self.font.getmetrics())

    @property
    def height(self) -> int:
        """Return the height of all lines."""
        return len(self.lines) * self.line

    @property
    def width(self) -> int:
        """Return the width of the widest line."""
        return max(math.ceil(self.font.getlength(text)) for text in self.lines)

    def put(self, pen: ImageDraw.ImageDraw, x: int, y: int, side: str) -> None:
        """Draw the lines below ``y``, with their ``m``iddle or their ``r``ight end at ``x``."""
        for number, text in enumerate(self.lines):
            pen.text((x, y + number * self.line), text, INK, self.font, anchor=f"{side}a")


def contact_sheet(
    pictures: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Tensor:
    """Return one picture of all pictures, ``(1, height, width, 3)``, no pixel of theirs changed.

    Args:
        pictures: ``(row * column, height, width, 3)``, row by row.
        columns: How many stand side by side.
        row_names: One per row, or none for no margin.
        column_names: One per column, or none for no margin.
    """
    rows, (height, width) = len(pictures) // columns, pictures.shape[1:3]
    size = max(_SMALLEST_LETTERS, min(height, width) // _LETTERS_PER_SIDE)
    above = [_label(name, size, width) for name in column_names]
    beside = [_label(name, size, max(width, _LETTERS_BESIDE * size)) for name in row_names]
    top = _GAP + max((label.height + _GAP for label in above), default=0)
    left = _GAP + max((label.width + _GAP for label in beside), default=0)
    row_height = max([height, *(label.height for label in beside)])
    across, down = width + _GAP, row_height + _GAP

    paper = Image.new("RGB", (left + columns * across, top + rows * down), PAPER)
    pen = ImageDraw.Draw(paper)
    for column, label in enumerate(above):
        label.put(pen, left + column * across + width // 2, top - _GAP - label.height, "m")
    for row, label in enumerate(beside):
        label.put(pen, left - _GAP, top + row * down + (row_height - label.height) // 2, "r")

    sheet = torch.from_numpy(np.array(paper)).float().div(255.0)  # (height, width, 3)
    for index, picture in enumerate(pictures):
        y, x = top + index // columns * down, left + index % columns * across
        sheet[y : y + height, x : x + width] = picture
    return sheet[None]


def drawable(names: Sequence[str], stand_ins: Sequence[str]) -> list[str]:
    """Return every name as it can be drawn: on one line, or its stand-in where no font has it.

    Args:
        names: What the labels should say.
        stand_ins: As many, of plain letters.
    """
    found = []
    for name, stand_in in zip(names, stand_ins, strict=True):
        text = " ".join(name.split())
        if not any(_has_letters(font, text) for font in _fonts(_SMALLEST_LETTERS)):
            warn_on_node(
                f"no font on this computer has all letters of {text!r}; the sheet says "
                f"{stand_in!r} in its place"
            )
            text = stand_in
        found.append(text)
    return found


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return a label in lines of at most a width in pixels; what is too much ends in an ellipsis.

    Lines break at spaces, and within words that are wider than a line.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= _MOST_LINES:
        return lines
    last = lines[_MOST_LINES - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: _MOST_LINES - 1], f"{last.rstrip()}…"]


def _label(name: str, size: int, width: int) -> _Label:
    font = named_font(name, size)
    return _Label(wrapped(name, font, width), font)


def named_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the first font that has a name's letters, or that has the most of them."""
    return max(_fonts(size), key=lambda font: sum(_has_letters(font, letter) for letter in name))


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Return Pillow's own font and those of the system that are there, in that order."""
    found = [ImageFont.load_default(size)]
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # a system has only some of them
            continue
    return found


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Return whether a font draws each letter as itself, not as the box for a missing one."""
    missing = font.getmask(_NO_LETTER)
    box = (missing.size, bytes(missing))
    letters = (font.getmask(letter) for letter in set(text) if not letter.isspace())
    return all((letter.size, bytes(letter)) != box for letter in letters)
