"""Read picture files as training data: upright, with three channels in 0..1.

Truncated and damaged files are refused, because Pillow would otherwise fill the rest with grey.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 100_000_000  # of one picture, which takes 1.2 GB while it is read

# Pillow's modes with 16 bits per pixel.
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class PictureFile:
    """The contents of one picture file.

    Args:
        name: Name of the file.
        pixels: ``(height, width, 3)`` in 0..1; transparent parts are white.
        alpha: ``(height, width)`` in 0..1; ``None`` if the picture is opaque.
        notes: Conversions, as ends of sentences that begin with the file's name.
    """

    name: str
    pixels: Tensor
    alpha: Tensor | None
    notes: list[str] = field(default_factory=list)


def read_picture(file: Path) -> PictureFile:
    """Return a picture, rotated by its EXIF orientation.

    Raises:
        ValueError: The picture is damaged, animated, too large or of an unusual kind; the message
            names it.
    """
    image, notes = _opened(file), []
    if image.mode in _DEEP_MODES or image.mode == "I":
        grey = _deep_grey(image, file)
        pixels = torch.from_numpy(grey)[..., None].expand(-1, -1, 3).contiguous()
        return PictureFile(file.name, pixels, None, ["has 16 bits and was read as grey"])
    if image.mode == "CMYK":
        notes.append("is in CMYK and was turned into RGB without its profile; check its colours")
    if "A" in image.getbands() or "transparency" in image.info:
        values = _values(image.convert("RGBA"))
        alpha = values[..., 3]
        pixels = values[..., :3] * alpha[..., None] + (1 - alpha[..., None])
        opaque = bool((alpha >= 1).all())
        return PictureFile(file.name, pixels, None if opaque else alpha, notes)
    return PictureFile(file.name, _values(image.convert("RGB")), None, notes)


def read_mask(file: Path, picture: PictureFile) -> Tensor:
    """Return a mask picture's brightness, ``(height, width)`` in 0..1.

    Raises:
        ValueError: The mask can't be read, or has another size than its picture.
    """
    image = _opened(file)
    deep = image.mode in _DEEP_MODES or image.mode == "I"
    mask = torch.from_numpy(_deep_grey(image, file)) if deep else _values(image.convert("L"))
    if mask.shape != picture.pixels.shape[:2]:
        (height, width), (down, across) = mask.shape, picture.pixels.shape[:2]
        raise ValueError(
            f"a mask must have the size of its picture, got {width} x {height} in {file.name} for "
            f"{picture.name} of {across} x {down}; resize the mask"
        )
    return mask


def _opened(file: Path) -> Image.Image:
    """Return the decoded picture, rotated by its EXIF orientation."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another node may have turned it on
    try:
        if file.stat().st_size == 0:
            raise EOFError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                unusable = _unusable(image, file.name)
                if unusable is None:
                    image.load()
                    return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"a picture must be readable, got {file.name}, which is no picture that Pillow knows; "
            "save it as PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large("more", file.name)) from error
    except Exception as error:  # Pillow raises many classes for damaged files
        reason = str(error).rstrip(".").split("\n")[0][:100] or type(error).__name__
        raise ValueError(
            f"a picture must be readable, got {file.name}, which is damaged ({reason}); replace it"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    raise ValueError(unusable)


def _unusable(image: Image.Image, name: str) -> str | None:
    """Return the reason to refuse a picture by its header, before it is decoded, or None."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return _too_large(f"{width} x {height}", name)
    frames = getattr(image, "n_frames", 1)
    # An MPO file of a camera holds one picture and smaller copies of it.
    if frames > 1 and image.format != "MPO":
        return (
            f"a picture must be a single one, got {frames} frames or pages in {name}; "
            "save one of them as PNG"
        )
    if image.mode == "F":
        return (
            f"a picture must have 8 or 16 bits per channel, got floating point numbers in {name}; "
            "save it as PNG"
        )
    return None


def _too_large(got: str, name: str) -> str:
    return (
        f"a picture must have at most {MAX_PIXELS // 10**6} million pixels, got {got} in {name}; "
        "make it smaller"
    )


def _deep_grey(image: Image.Image, file: Path) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"a picture must have 8 or 16 bits per channel, got 32 in {file.name}; save it as PNG"
        )
    return values / 65535


def _values(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255)
