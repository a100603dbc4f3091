"""Draw the demo's contact sheet: the pair, then one column of two pictures per prompt."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

SIDE = 192  # pixels of a picture
MARGIN = 16
CAPTION = 26  # height of a caption
HEAD = 40  # height of the title
INK = (40, 40, 44)
PAPER = (250, 249, 246)


@dataclass(frozen=True)
class Column:
    """One prompt and its two pictures, PNG files of the same size and from the same noise."""

    prompt: str
    plain: bytes
    styled: bytes


def contact_sheet(before: bytes, after: bytes, columns: list[Column], title: str) -> Image.Image:
    """Return the sheet: the pair in the first column, plain above styled in the others."""
    cell_width = SIDE + MARGIN
    cell_height = SIDE + CAPTION + MARGIN
    width = MARGIN + cell_width * (1 + len(columns)) + MARGIN
    height = HEAD + cell_height * 2 + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((MARGIN, 10), title, fill=INK, font=ImageFont.load_default(18))

    def put(column: int, row: int, picture: bytes, caption: str) -> None:
        # A second margin separates the pair from the pictures that were made with the style.
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
    """Return the picture enlarged to the sheet's size, without interpolation between pixels."""
    with Image.open(BytesIO(picture)) as image:
        square = image.convert("RGB")
    scale = max(1, SIDE // max(square.size))
    grown = square.resize((square.width * scale, square.height * scale), Image.Resampling.NEAREST)
    grown.thumbnail((SIDE, SIDE))
    return grown
