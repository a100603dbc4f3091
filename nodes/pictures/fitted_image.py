"""Check, resize, crop and encode one training picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..bridge.vae import require_finite

SMALLEST_SIDE = 16  # pixels; a smaller picture has too little detail to learn from


@dataclass(frozen=True)
class FittedImage:
    """One picture, resized and cropped for training.

    Args:
        pixels: ``(height, width, 3)`` in 0..1, fp32 on the CPU.
        original_size: Height and width of the original picture.
        crop: Top and left of the crop, in pixels of the resized picture.
    """

    pixels: Tensor
    original_size: tuple[int, int]
    crop: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of the pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def single_images(batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the pictures of a list of IMAGE batches, each ``(height, width, channel)``."""
    return [image for batch in batches for image in (batch if batch.ndim == 4 else batch[None])]


def check_picture(image: Tensor, name: str) -> None:
    """Raise unless a picture can be used for training.

    Args:
        image: ``(height, width, channel)``.
        name: Name of the picture, for messages.

    Raises:
        ValueError: The picture is too small, has no usable channels, or has values that are not
            finite.
    """
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


def to_rgb(image: Tensor, name: str) -> Tensor:
    """Return a copy with three channels in 0..1; transparent parts become white.

    Raises:
        ValueError: The picture can't be used for training.
    """
    check_picture(image, name)
    with torch.inference_mode(False):
        image = image.detach().clone().float().cpu()
    height, width, channels = image.shape
    image = image.clamp(0.0, 1.0)
    has_alpha = channels in (2, 4)
    colours = image[..., : channels - 1] if has_alpha else image
    if has_alpha:
        alpha = image[..., -1:]
        colours = colours * alpha + (1.0 - alpha)
    return colours.expand(height, width, 3)


def onto_frame(image: Tensor, full: tuple[int, int], multiple: int) -> FittedImage:
    """Return the picture resized to cover ``full`` and cropped at its centre.

    Args:
        image: ``(height, width, channel)``, any number of channels.
        full: Height and width that the resized picture covers.
        multiple: Number to whose multiples the sides of ``full`` are rounded down for the crop.
    """
    original = (image.shape[0], image.shape[1])
    scale = max(full[0] / original[0], full[1] / original[1])
    covering = [
        max(side, round(length * scale)) for side, length in zip(full, original, strict=True)
    ]
    image = resized(image, (covering[0], covering[1]))
    height, width = (side // multiple * multiple for side in full)
    top, left = (
        (over - side) // 2 + (side - kept) // 2
        for over, side, kept in zip(covering, full, (height, width), strict=True)
    )
    cropped = image[top : top + height, left : left + width]
    return FittedImage(cropped.clamp(0.0, 1.0).contiguous(), original, (top, left))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the picture ``(height, width, channel)``, resized with antialiased interpolation."""
    if tuple(image.shape[:2]) == size:
        return image
    channels_first = image.movedim(-1, 0)[None]
    found = F.interpolate(channels_first, size=size, mode="bilinear", antialias=True)
    return found[0].movedim(0, -1)


def encode_picture(vae: comfy.sd.VAE, image: FittedImage, mirrored: bool) -> Tensor:
    """Return the VAE's latent, ``(1, channel, ...)``.

    Note: ComfyUI's VAE returns the mean of the posterior; the paper samples it in every step.

    Raises:
        RuntimeError: The VAE returns NaN, as fp16 VAEs do for some pictures.
    """
    pixels = image.pixels.flip(1) if mirrored else image.pixels
    latent = vae.encode(
        pixels[None]
    )  # one picture per call, because a video VAE reads a batch as frames
    require_finite(latent, vae)
    return latent
