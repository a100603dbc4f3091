"""Files of training pictures that are damaged or not supported."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from training_pictures import two_colour_picture


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def animated(place: Path) -> None:
    two_colour_picture().save(
        place,
        save_all=True,
        append_images=[two_colour_picture(mode="L"), two_colour_picture().rotate(90)],
    )


def huge(place: Path) -> None:
    """Write a small file whose header declares 30,000 x 30,000 pixels."""
    png = bytearray(as_png(two_colour_picture(mode="1")))
    png[16:24] = struct.pack(">II", 30_000, 30_000)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    place.write_bytes(png)


def large(place: Path) -> None:
    Image.new("1", (30_000, 4_000)).save(place)


BAD_PICTURES = {
    "zero.png": (lambda place: place.write_bytes(b""), "damaged .the file is empty.; replace it"),
    "cut.png": (
        lambda place: place.write_bytes(as_png(two_colour_picture(300, 300))[:300]),
        "damaged",
    ),
    "cut.jpg": (
        lambda place: (
            two_colour_picture(300, 300).save(place),
            place.write_bytes(place.read_bytes()[:900]),
        ),
        "damaged",
    ),
    "text.png": (lambda place: place.write_text("hello"), "no picture that Pillow knows"),
    "moving.gif": (animated, "a single one, got 3 frames or pages in moving.gif; save one"),
    "moving.webp": (animated, "a single one, got 3 frames"),
    "moving.png": (animated, "a single one, got 3 frames"),
    "pages.tiff": (animated, "a single one, got 3 frames or pages in pages.tiff"),
    "huge.png": (huge, "at most 100 million pixels, got more in huge.png; make it smaller"),
    "large.png": (large, "at most 100 million pixels, got 30000 x 4000 in large.png"),
    "float.tiff": (
        lambda place: Image.fromarray(np.ones((32, 32), np.float32)).save(place),
        "floating point numbers in float.tiff",
    ),
    "deep.tiff": (
        lambda place: Image.fromarray(np.full((32, 32), 70_000, np.int32)).save(place),
        "8 or 16 bits per channel, got 32 in deep.tiff",
    ),
}
