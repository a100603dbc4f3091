"""Fit the before and the after picture of a pair onto one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures.fitted_image import FittedImage, onto_frame, single_images, to_rgb


@dataclass(frozen=True)
class FittedPair:
    """The two pictures of a pair on one frame.

    Args:
        before: Picture before the style.
        after: Picture in the style.
        note: Sentence about the frame and the fitting, for the node.
    """

    before: FittedImage
    after: FittedImage
    note: str


def fit_pairs(
    before: Sequence[Tensor], after: Sequence[Tensor], resolution: int, multiple: int
) -> list[FittedPair]:
    """Return every pair on its own frame.

    Args:
        before: IMAGE batches ``(batch, height, width, channel)``; sizes may differ.
        after: IMAGE batches with the same number of pictures.
        resolution: Shorter side of the frames; smaller pictures are not enlarged.
        multiple: Divisor of the frames' sides in pixels.

    Raises:
        ValueError: The counts differ, or a picture is too small or holds no picture.
    """
    befores, afters = single_images(before), single_images(after)
    if len(befores) != len(afters) or not befores:
        raise ValueError(
            "before and after must hold the same number of pictures, got "
            f"{len(befores)} before and {len(afters)} after; give every picture its partner"
        )
    return [
        fit_pair(*pair, resolution, multiple, number)
        for number, pair in enumerate(zip(befores, afters, strict=True), start=1)
    ]


def fit_pair(
    before: Tensor, after: Tensor, resolution: int, multiple: int, number: int = 1
) -> FittedPair:
    """Return one pair on the frame of its before picture.

    The before picture is resized so that its shorter side is ``resolution``. The after picture is
    resized to cover the same size and cropped to it at its centre. Both are then center-cropped to
    multiples of ``multiple``. If a picture is too small, the frame is made smaller, so that neither
    picture is enlarged.

    Note: The paper crops a random square; here the whole picture is used.

    Args:
        before: ``(height, width, channel)``.
        after: ``(height, width, channel)``.
        resolution: Maximum of the frame's shorter side.
        multiple: Divisor of the frame's sides in pixels.
        number: Number of the pair, for messages.
    """
    before, after = to_rgb(before, f"before {number}"), to_rgb(after, f"after {number}")
    full = _common_size(before.shape[:2], after.shape[:2], resolution, multiple)
    fitted = onto_frame(before, full, multiple), onto_frame(after, full, multiple)
    return FittedPair(*fitted, note=_note(*fitted, resolution, number))


def side_by_side(pair: FittedPair, mirrored: bool) -> Tensor:
    """Return before and after side by side as an IMAGE, ``(1, height, 2 * width, 3)``."""
    images = [
        image.pixels.flip(1) if mirrored else image.pixels for image in (pair.before, pair.after)
    ]
    return torch.cat(images, dim=1)[None]


def _common_size(
    before: Sequence[int], after: Sequence[int], resolution: int, multiple: int
) -> tuple[int, int]:
    """Return height and width to which both pictures are resized before the last crop."""
    scale = min(1.0, resolution / min(before))
    for ours, theirs in zip(before, after, strict=True):
        scale = min(scale, theirs / ours)
    height, width = (max(multiple, round(side * scale)) for side in before)
    return height, width


def _note(before: FittedImage, after: FittedImage, resolution: int, number: int) -> str:
    parts = [f"pair {number} trained at {before.size[1]} x {before.size[0]}"]
    if min(*before.original_size, *after.original_size) < resolution:
        parts.append(f"a picture is below the resolution of {resolution}, so none is enlarged")
    if before.original_size != after.original_size:
        height, width = after.original_size
        parts.append(f"after ({width} x {height}) is fitted onto before's frame")
    return "; ".join(parts)
