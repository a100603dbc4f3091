"""Training pictures cut anew at random, as Mix-of-Show's released code cuts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...training.randomness import generator_for
from .fitted_image import FittedImage, resized
from .picture import Picture, require_not_black

CROPS = ("whole picture", "random square", "placed at random")
"""How a picture is cut: to its own frame (this pack's), as the research branch cuts objects and
places, or as the main branch cuts persons."""

CROPS_EACH = 16
"""Cuts of a picture, encoded before the training; the released code cuts anew in every step."""

_TRIES = 1000  # for a cut that holds some of the mask

Look = tuple[FittedImage, Tensor | None]
"""A picture as it is trained, and what each of its pixels counts."""

Cut = Callable[[Tensor, int, torch.Generator], tuple[Tensor, int, int]]
"""Pixels, side and draw to a square, and where its top and left lie in the picture."""


def looks(picture: Picture, how: str, resolution: int, multiple: int, seed: int) -> Iterator[Look]:
    """Yield every cut of a picture, made when it is asked for.

    Args:
        picture: With its mask.
        how: One of ``CROPS``.
        resolution: Side of the squares; a smaller picture gives smaller ones, 0 the largest.
        multiple: Of their sides.
        seed: Of the run.

    Raises:
        ValueError: All that the mask lets count is cut away.
    """
    if how == CROPS[0]:
        yield picture.fitted()
        return
    pixels = picture.pixels()
    shorter = min(pixels.shape[:2])
    side = min(resolution, shorter) if resolution else shorter
    side = side // multiple * multiple or side
    scaled = _to_shorter(pixels, side)
    cut = _square if how == CROPS[1] else _placed
    for number in range(CROPS_EACH):
        yield _with_something(picture, scaled, cut, side, (seed, "crop", picture.number, number))


def _with_something(
    picture: Picture, pixels: Tensor, cut: Cut, side: int, place: tuple[int | str, ...]
) -> Look:
    """Return a cut that holds some of the mask, of several the first."""
    for attempt in range(_TRIES):
        found, top, left = cut(pixels, side, generator_for(*place, attempt))
        mask = found[..., 3].contiguous() if found.shape[-1] > 3 else None
        if mask is None or bool((mask > 0).any()):
            break
    else:
        require_not_black(mask, picture.number, "in every part that was cut out")
    kept = found[..., :3].clamp(0.0, 1.0).contiguous()
    return FittedImage(kept, (picture.image.shape[0], picture.image.shape[1]), (top, left)), mask


def _square(pixels: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """Return the shorter side whole, the longer one from somewhere; and the crop's place."""
    top, left = (_draw(length - side, generator) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side], top, left


def _placed(pixels: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """Return the picture, or every other time a part of it, somewhere on a black square.

    A part of a high picture reaches from its top to below its square; of a wide one it is a square.
    Only where the picture lies counts, so there is always a mask.
    """
    height, width = pixels.shape[:2]
    if _draw(1, generator):
        if height > width:
            pixels = pixels[: width + _draw(height - width, generator)]
        else:
            left = _draw(width - side, generator)
            pixels = pixels[:side, left : left + side]
    height, width = pixels.shape[:2]
    share = side / max(height, width)
    pixels = resized(pixels, (max(1, round(height * share)), max(1, round(width * share))))
    if pixels.shape[-1] == 3:
        pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    found = pixels.new_zeros(side, side, 4)
    height, width = pixels.shape[:2]
    top, left = _draw(side - height, generator), _draw(side - width, generator)
    found[top : top + height, left : left + width] = pixels
    # Not a place in the picture: SDXL is told of none.
    return found, 0, 0


def _to_shorter(pixels: Tensor, side: int) -> Tensor:
    share = side / min(pixels.shape[:2])
    return resized(pixels, tuple(max(side, round(length * share)) for length in pixels.shape[:2]))


def _draw(most: int, generator: torch.Generator) -> int:
    """Return a whole number from 0 to ``most``, both included."""
    return int(torch.randint(most + 1, (), generator=generator))
