"""Before/after pictures as a pair is trained: cleaned, fitted onto one frame, mirrored, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SIDE = 16
"""In pixels; below it there is nothing to learn a style from."""


@dataclass(frozen=True)
class FittedImage:
    """One picture as it is trained.

    Args:
        pixels: ``(height, width, 3)`` in 0..1, fp32 on the CPU.
        original_size: Height and width of the picture as it came.
        crop: Top and left of the crop, in pixels of the resized picture.
    """

    pixels: Tensor
    original_size: tuple[int, int]
    crop: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of what is trained."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class FittedPair:
    """Both pictures of a pair on one frame, and a note in plain words on how they got there."""

    before: FittedImage
    after: FittedImage
    note: str


def single_images(batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the pictures of a list of IMAGE batches, each ``(height, width, channel)``."""
    return [image for batch in batches for image in (batch if batch.ndim == 4 else batch[None])]


def fit_pairs(
    before: Sequence[Tensor], after: Sequence[Tensor], resolution: int, multiple: int
) -> list[FittedPair]:
    """Return every pair on its own frame.

    Args:
        before: IMAGE batches ``(batch, height, width, channel)``; sizes may differ.
        after: The same number of pictures.
        resolution: Shorter side to resize to; smaller pictures keep their size.
        multiple: The frame's sides are multiples of this.

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
    resized to cover the same size and cropped to it at its centre. Both are then cropped at their
    centre to the multiple below. Sizes shrink until neither picture is enlarged.

    # Differs from the paper: it crops a random square; here all of the picture is seen.

    Args:
        before: ``(height, width, channel)``.
        after: ``(height, width, channel)``.
        resolution: Shorter side of the frame at most.
        multiple: Of the frame's sides.
        number: Of the pair, for messages.
    """
    before, after = _cleaned(before, f"before {number}"), _cleaned(after, f"after {number}")
    full = _common_size(before.shape[:2], after.shape[:2], resolution, multiple)
    fitted = _onto(before, full, multiple), _onto(after, full, multiple)
    return FittedPair(*fitted, note=_note(*fitted, resolution, number))


def encode(vae: comfy.sd.VAE, image: FittedImage, mirrored: bool) -> Tensor:
    """Return the VAE's latent, ``(1, channel, ...)``.

    # Differs from the paper: ComfyUI's VAE gives the posterior's mean, not a new sample per step.

    Raises:
        RuntimeError: The VAE gives NaN, as fp16 ones do on some pictures.
    """
    pixels = image.pixels.flip(1) if mirrored else image.pixels
    latent = vae.encode(pixels[None])  # one by one: a video VAE reads a batch as frames
    if not torch.isfinite(latent).all():
        raise RuntimeError(
            f"the VAE must give finite numbers, got NaN from one in {vae.vae_dtype}; "
            "start ComfyUI with --bf16-vae or --fp32-vae, or load a VAE that is made for fp16"
        )
    return latent


def side_by_side(pair: FittedPair, mirrored: bool) -> Tensor:
    """Return before and after beside each other as an IMAGE, ``(1, height, 2 * width, 3)``."""
    images = [
        image.pixels.flip(1) if mirrored else image.pixels for image in (pair.before, pair.after)
    ]
    return torch.cat(images, dim=1)[None]


def _cleaned(image: Tensor, name: str) -> Tensor:
    """Return three channels in 0..1 as a tensor of our own; transparency becomes white."""
    with torch.inference_mode(False):
        image = image.detach().clone().float().cpu()
    height, width, channels = image.shape
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"a picture must have at least {SMALLEST_SIDE} pixels on each side, "
            f"got {width} x {height} for {name}; choose a larger picture"
        )
    if not torch.isfinite(image).all():
        raise ValueError(
            f"a picture must hold finite numbers, got NaN or infinity in {name}; "
            "check the node that made it"
        )
    if channels not in (1, 2, 3, 4):
        raise ValueError(
            f"a picture must be grey or RGB, with or without alpha, got {channels} channels "
            f"for {name}; convert it to RGB"
        )
    image = image.clamp(0.0, 1.0)
    colours = image[..., : channels - (channels % 2 == 0)]
    if channels % 2 == 0:
        alpha = image[..., -1:]
        colours = colours * alpha + (1.0 - alpha)
    return colours.expand(height, width, 3)


def _common_size(
    before: tuple[int, int], after: tuple[int, int], resolution: int, multiple: int
) -> tuple[int, int]:
    """Return height and width that both pictures are brought to before the last crop."""
    scale = min(1.0, resolution / min(before))
    for ours, theirs in zip(before, after, strict=True):
        scale = min(scale, theirs / ours)
    height, width = (max(multiple, round(side * scale)) for side in before)
    return height, width


def _onto(image: Tensor, full: tuple[int, int], multiple: int) -> FittedImage:
    """Return the picture resized to cover ``full``, cropped at its centre to the multiple below."""
    original = (image.shape[0], image.shape[1])
    scale = max(full[0] / original[0], full[1] / original[1])
    covering = [max(side, round(of * scale)) for side, of in zip(full, original, strict=True)]
    if tuple(covering) != original:
        channels_first = image.movedim(-1, 0)[None]
        resized = F.interpolate(channels_first, size=covering, mode="bilinear", antialias=True)
        image = resized[0].movedim(0, -1)
    height, width = (side // multiple * multiple for side in full)
    top, left = (
        (over - side) // 2 + (side - kept) // 2
        for over, side, kept in zip(covering, full, (height, width), strict=True)
    )
    cropped = image[top : top + height, left : left + width]
    return FittedImage(cropped.clamp(0.0, 1.0).contiguous(), original, (top, left))


def _note(before: FittedImage, after: FittedImage, resolution: int, number: int) -> str:
    parts = [f"pair {number} trained at {before.size[1]} x {before.size[0]}"]
    if min(*before.original_size, *after.original_size) < resolution:
        parts.append(f"a picture is below the resolution of {resolution}, so none is enlarged")
    if before.original_size != after.original_size:
        height, width = after.original_size
        parts.append(f"after ({width} x {height}) is fitted onto before's frame")
    return "; ".join(parts)
