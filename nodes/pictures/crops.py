"""Cut random crops from training pictures, as Mix-of-Show's released code does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...training.randomness import generator_for
from .fitted_image import FittedImage, resized
from .picture import Picture, black_mask

# The first is this pack's own and keeps the picture's frame. The second is how the research branch
# of the released code cuts objects and places, the third how its main branch cuts persons.
CROP_METHODS = ("whole picture", "random square", "placed at random")

# Crops are encoded before training; the released code cuts a new one in every step.
CROPS_PER_PICTURE = 16

_MAX_ATTEMPTS = 1000  # to find a crop that contains a part of the mask

Crop = tuple[FittedImage, Tensor | None]  # a crop and the weight of each of its pixels

# ``(pixels, side, generator) -> (square, top, left)``
CropFunction = Callable[[Tensor, int, torch.Generator], tuple[Tensor, int, int]]


def crops_of(
    picture: Picture, method: str, resolution: int, multiple: int, seed: int
) -> Iterator[Crop]:
    """Yield all crops of a picture, each made when it is requested.

    Args:
        picture: The picture with its mask.
        method: One of ``CROP_METHODS``.
        resolution: Side of the squares. A smaller picture gives smaller squares; 0 gives the
            largest squares that fit.
        multiple: Number of which the sides are multiples.
        seed: Seed of the run.

    Raises:
        ValueError: Everything that the mask selects is cut away.
    """
    if method == CROP_METHODS[0]:
        yield picture.fitted()
        return
    pixels = picture.pixels()
    shorter = min(pixels.shape[:2])
    side = min(resolution, shorter) if resolution else shorter
    side = side // multiple * multiple or side
    scaled = _to_shorter(pixels, side)
    crop = _square if method == CROP_METHODS[1] else _placed
    for number in range(CROPS_PER_PICTURE):
        yield _unmasked_crop(picture, scaled, crop, side, seed, number)


def _unmasked_crop(
    picture: Picture, pixels: Tensor, crop: CropFunction, side: int, seed: int, number: int
) -> Crop:
    """Return the first random crop that contains a part of the mask."""
    size = picture.image.shape[0], picture.image.shape[1]
    for attempt in range(_MAX_ATTEMPTS):
        generator = generator_for(seed, "crop", picture.number, number, attempt)
        found, top, left = crop(pixels, side, generator)
        mask = found[..., 3].contiguous() if found.shape[-1] > 3 else None
        if mask is None or bool((mask > 0).any()):
            kept = found[..., :3].clamp(0.0, 1.0).contiguous()
            return FittedImage(kept, size, (top, left)), mask
    raise black_mask(picture.number, "in every part that was cut out")


def _square(pixels: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """Return a square with the whole shorter side, at a random position, and its top and left."""
    top, left = (_draw(length - side, generator) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side], top, left


def _placed(pixels: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """Return the whole picture, or half of the time a part of it, placed on a black square.

    A part of a tall picture begins at its top and is at least as high as wide; a part of a wide
    picture is a square. Only the pixels of the picture count, so there is always a mask.
    """
    height, width = pixels.shape[:2]
    if _draw(1, generator):
        if height > width:
            pixels = pixels[: width + _draw(height - width, generator)]
        else:
            left = _draw(width - side, generator)
            pixels = pixels[:side, left : left + side]
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    pixels = resized(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
    if pixels.shape[-1] == 3:
        pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    found = pixels.new_zeros(side, side, 4)
    height, width = pixels.shape[:2]
    top, left = _draw(side - height, generator), _draw(side - width, generator)
    found[top : top + height, left : left + width] = pixels
    # The square has no position in the picture, so SDXL gets a crop position of 0.
    return found, 0, 0


def _to_shorter(pixels: Tensor, side: int) -> Tensor:
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    return resized(pixels, (max(side, round(height * scale)), max(side, round(width * scale))))


def _draw(most: int, generator: torch.Generator) -> int:
    """Return a whole number from 0 to ``most``, both included."""
    return int(torch.randint(most + 1, (), generator=generator))
