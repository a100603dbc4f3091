"""Prepare the pictures of a half, with errors that name the node's inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..bridge.inputs import one_or_each
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of


def half_pictures(
    images: Sequence[Tensor],
    prompts: Sequence[str],
    resolution: int,
    multiple: int,
    names: tuple[str, str],
) -> list[Picture]:
    """Return every picture with its prompt and frame; an empty list without pictures.

    Args:
        images: IMAGE batches ``(batch, height, width, channel)``; sizes may differ.
        prompts: One prompt for all pictures, or one per picture.
        resolution: Side of the square to whose area larger pictures are resized.
        multiple: Divisor of the frames' sides in pixels.
        names: Names of the node's inputs for pictures and prompts.

    Raises:
        ValueError: The counts differ, or a picture is not valid.
    """
    count = len(single_images(images))
    if not count:
        return []
    texts = one_or_each(prompts, count, names[1], "picture")
    try:
        return pictures_of(images, (), texts, resolution, multiple)
    except ValueError as error:
        raise ValueError(f"{names[0]}: {error}") from error
