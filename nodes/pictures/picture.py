"""Combine training pictures with their captions, masks and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bridge.inputs import one_or_each
from .buckets import Size, bucket_for, kept_fraction
from .fitted_image import FittedImage, check_picture, onto_frame, single_images, to_rgb


@dataclass(frozen=True)
class Picture:
    """One picture to train on.

    Args:
        number: Number from 1, for messages.
        image: Original picture, ``(height, width, channel)``.
        caption: Caption without surrounding spaces; may be empty.
        mask: Weight of each pixel, ``(height, width)``; ``None`` if all weights are equal.
        frame: Height and width of the picture in training.
    """

    number: int
    image: Tensor
    caption: str
    mask: Tensor | None
    frame: Size

    def fitted(self) -> tuple[FittedImage, Tensor | None]:
        """Return the picture resized and cropped to the frame, and its mask ``(height, width)``.

        Raises:
            ValueError: Everything that the mask selects is cut away.
        """
        both = onto_frame(self.pixels(), self.frame, 1)
        if self.mask is None:
            return both, None
        picture, mask = both.pixels[..., :3].contiguous(), both.pixels[..., 3].contiguous()
        require_not_black(mask, self.number, "in the part that is trained")
        return replace(both, pixels=picture), mask

    def pixels(self) -> Tensor:
        """Return the original in RGB, ``(height, width, 3)``, or with its mask as channel 4."""
        pixels = to_rgb(self.image, f"picture {self.number}")
        if self.mask is None:
            return pixels
        with torch.inference_mode(False):
            mask = self.mask.detach().clone().float().cpu().clamp(0.0, 1.0)
        return torch.cat([pixels, mask[..., None]], dim=-1)

    @property
    def kept(self) -> float:
        """Return the fraction of the picture that the frame keeps."""
        return kept_fraction((self.image.shape[0], self.image.shape[1]), self.frame)


def pictures_of(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    captions: Sequence[str],
    resolution: int,
    multiple: int,
    captions_name: str = "captions",
) -> list[Picture]:
    """Return every picture with its caption, mask and frame.

    Args:
        images: IMAGE batches ``(batch, height, width, channel)``; sizes may differ.
        masks: MASK batches ``(batch, height, width)``, one mask per picture, or none.
        captions: One caption for all pictures, or one per picture.
        resolution: Side of the square to whose area larger pictures are reduced.
        multiple: Number of which the frames' sides are multiples.
        captions_name: Name of the captions' input, for messages.

    Raises:
        ValueError: The counts differ, a picture can't be used, or a mask doesn't fit its picture.
    """
    pictures = single_images(images)
    all_masks = [mask for batch in masks for mask in (batch if batch.ndim == 3 else batch[None])]
    if masks and len(all_masks) != len(pictures):
        raise ValueError(
            f"masks must be one per picture, got {len(all_masks)} for {len(pictures)} pictures; "
            "give each its own, a white one where all of it counts"
        )
    texts = one_or_each(captions, len(pictures), captions_name, "picture")
    found = []
    for number, (image, text) in enumerate(zip(pictures, texts, strict=True), start=1):
        check_picture(image, f"picture {number}")
        mask = _checked_mask(all_masks[number - 1], image, number) if all_masks else None
        frame = bucket_for((image.shape[0], image.shape[1]), resolution, multiple)
        found.append(Picture(number, image, text.strip(), mask, frame))
    return found


def _checked_mask(mask: Tensor, image: Tensor, number: int) -> Tensor | None:
    """Return the mask, ``None`` if all of it is white."""
    if mask.shape != image.shape[:2]:
        height, width = image.shape[:2]
        raise ValueError(
            f"a mask must have the size of its picture, got {mask.shape[1]} x {mask.shape[0]} for "
            f"picture {number} of {width} x {height}; resize mask {number}"
        )
    if not torch.isfinite(mask).all():
        raise ValueError(
            f"a mask must hold finite numbers, got NaN or infinity in mask {number}; "
            "check the node that made it"
        )
    require_not_black(mask, number, "everywhere")
    return None if bool((mask >= 1).all()) else mask


def require_not_black(mask: Tensor, number: int, where: str) -> None:
    """Raise if a mask is black.

    Raises:
        ValueError: The mask is black.
    """
    if not bool((mask > 0).any()):
        raise black_mask(number, where)


def black_mask(number: int, where: str) -> ValueError:
    """Return the error for a mask that is black.

    Args:
        number: Number of the picture.
        where: Part of the picture in which the mask is black, for the message.
    """
    return ValueError(
        f"a mask must be white where its picture counts, got one that is black {where} for "
        f"picture {number}; paint mask {number} or leave it white"
    )
