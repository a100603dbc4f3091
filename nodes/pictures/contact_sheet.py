"""Arrange pictures in rows and columns with labels on a plain margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..bridge.node_output import warn_on_node

PAPER, INK = (250, 249, 246), (40, 40, 44)
_GAP = 6  # pixels between pictures and around labels
_MIN_FONT_SIZE = 12  # pixels
_FONT_SIZES_PER_SIDE = 20  # the font size is the picture's shorter side divided by this
_ROW_LABEL_WIDTH = 8  # a row's label may be this many font sizes wide even if pictures are narrower
_MAX_LINES = 4
# Pillow's own font is tried first, but has only the letters of English. These fonts are then looked
# up by name in the system's folders; the first one with all letters of a label is used.
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
_NO_LETTER = "\U0010ffff"  # no font has this character, so it is drawn as the missing glyph


@dataclass(frozen=True)
class _Label:
    """A name, broken into lines, and a font that has its letters."""

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
        """Draw the lines below ``y`` with their middle (side "m") or right end ("r") at ``x``."""
        for number, text in enumerate(self.lines):
            pen.text((x, y + number * self.line), text, INK, self.font, anchor=f"{side}a")


def contact_sheet(
    pictures: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Tensor:
    """Return one sheet with all pictures, ``(1, height, width, 3)``, their pixels unchanged.

    Args:
        pictures: ``(row * column, height, width, 3)``, row by row.
        columns: Number of pictures in a row.
        row_names: One name per row, or none for no margin.
        column_names: One name per column, or none for no margin.
    """
    rows, (height, width) = len(pictures) // columns, pictures.shape[1:3]
    size = max(_MIN_FONT_SIZE, min(height, width) // _FONT_SIZES_PER_SIDE)
    column_labels = [_label(name, size, width) for name in column_names]
    row_labels = [_label(name, size, max(width, _ROW_LABEL_WIDTH * size)) for name in row_names]
    top = _GAP + max((label.height + _GAP for label in column_labels), default=0)
    left = _GAP + max((label.width + _GAP for label in row_labels), default=0)
    row_height = max([height, *(label.height for label in row_labels)])
    across, down = width + _GAP, row_height + _GAP

    paper = Image.new("RGB", (left + columns * across, top + rows * down), PAPER)
    pen = ImageDraw.Draw(paper)
    for column, label in enumerate(column_labels):
        label.put(pen, left + column * across + width // 2, top - _GAP - label.height, "m")
    for row, label in enumerate(row_labels):
        label.put(pen, left - _GAP, top + row * down + (row_height - label.height) // 2, "r")

    sheet = torch.from_numpy(np.array(paper)).float().div(255.0)  # (height, width, 3)
    for index, picture in enumerate(pictures):
        y, x = top + index // columns * down, left + index % columns * across
        sheet[y : y + height, x : x + width] = picture
    return sheet[None]


def drawable(names: Sequence[str], stand_ins: Sequence[str]) -> list[str]:
    """Return the names on one line each; a name that no font can draw is replaced by its stand-in.

    Args:
        names: Texts of the labels.
        stand_ins: One text in English letters for each name.
    """
    found = []
    for name, stand_in in zip(names, stand_ins, strict=True):
        text = " ".join(name.split())
        if not any(_has_letters(font, text) for font in _fonts(_MIN_FONT_SIZE)):
            warn_on_node(
                f"no font on this computer has all letters of {text!r}; the sheet says "
                f"{stand_in!r} in its place"
            )
            text = stand_in
        found.append(text)
    return found


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return a label in lines of at most ``width`` pixels; a label that is too long is truncated.

    Lines break at spaces, and inside words that are wider than a line. A truncated label ends in an
    ellipsis.
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
    if len(lines) <= _MAX_LINES:
        return lines
    last = lines[_MAX_LINES - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: _MAX_LINES - 1], f"{last.rstrip()}…"]


def _label(name: str, size: int, width: int) -> _Label:
    font = named_font(name, size)
    return _Label(wrapped(name, font, width), font)


def named_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the first font that has all letters of a name, or else the most of them."""
    return max(_fonts(size), key=lambda font: sum(_has_letters(font, letter) for letter in name))


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Return Pillow's own font and then the listed fonts that the system has."""
    # Pillow returns its old bitmap font only if no size is given.
    found = [cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))]
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:  # this system does not have the font
            continue
    return found


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Return whether a font has a glyph for each letter, rather than the box of a missing glyph."""
    box = _glyph(font, _NO_LETTER)
    return all(_glyph(font, letter) != box for letter in set(text) if not letter.isspace())


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    """Return size and pixels of a letter as the font draws it."""
    mask = font.getmask(letter)
    # Pillow's stubs leave out that the mask is a buffer.
    return mask.size, bytes(mask)  # pyright: ignore[reportArgumentType]
