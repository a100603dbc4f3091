"""The demo's contact sheet: the pair, then plain above styled, one column per prompt."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

SIDE = 192
MARGIN = 16
CAPTION = 26
HEAD = 40
INK = (40, 40, 44)
PAPER = (250, 249, 246)


@dataclass(frozen=True)
class Column:
    """One prompt with its two pictures, PNG files of equal size and noise."""

    prompt: str
    plain: bytes
    styled: bytes


def contact_sheet(before: bytes, after: bytes, columns: list[Column], title: str) -> Image.Image:
    """Return the sheet: before over after on the left, plain over styled to the right of it."""
    cell_width = SIDE + MARGIN
    cell_height = SIDE + CAPTION + MARGIN
    width = MARGIN + cell_width * (1 + len(columns)) + MARGIN
    height = HEAD + cell_height * 2 + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((MARGIN, 10), title, fill=INK, font=ImageFont.load_default(18))

    def put(column: int, row: int, picture: bytes, caption: str) -> None:
        # The second margin sets the pair apart from what was made with it.
        left = MARGIN + cell_width * column + (MARGIN if column else 0)
        top = HEAD + cell_height * row
        sheet.paste(_enlarged(picture), (left, top))
        draw.text((left, top + SIDE + 5), caption, fill=INK, font=font)

    put(0, 0, before, "before")
    put(0, 1, after, "after")
    for number, column in enumerate(columns, 1):
        put(number, 0, column.plain, column.prompt)
        put(number, 1, column.styled, "the same, styled")
    return sheet


def _enlarged(picture: bytes) -> Image.Image:
    """Return the picture at the sheet's size, its pixels kept as squares."""
    with Image.open(BytesIO(picture)) as image:
        square = image.convert("RGB")
    scale = max(1, SIDE // max(square.size))
    grown = square.resize((square.width * scale, square.height * scale), Image.Resampling.NEAREST)
    grown.thumbnail((SIDE, SIDE))
    return grown
