"""Encode pictures and captions into training examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import Example, TrainingSettings
from ...training.gates import RowGates
from ..pictures.fitted_image import FittedImage
from ..pictures.picture import Picture
from ..text.live_caption import LiveCaption, TokenizedCaption
from ..text.training_cond import Framing, TrainingCond, training_cond
from .base import Base, Caption
from .preview import PreviewScene

# For every value of the setting ``flip``: whether each view of a picture is mirrored.
VIEWS = {"never": (False,), "always": (True,), "random": (False, True)}


def training_caption(base: Base, text: str, settings: TrainingSettings) -> Caption:
    """Return an encoded caption, or its tokens if the text encoder is trained."""
    return (
        TokenizedCaption.of(base.clip, text) if settings.text_encoder_rate else base.caption(text)
    )


def caption_cond(
    model: ModelPatcher, caption: Caption, latent: Tensor, framing: Framing | None = None
) -> TrainingCond | LiveCaption:
    """Return the conditions of a caption for one latent, ``(channel, ...)``."""
    if isinstance(caption, TokenizedCaption):
        return caption.cond(latent, framing)
    return training_cond(model, caption, latent, framing)


def picture_views(
    base: Base, image: FittedImage, flip: str, mask: Tensor | None = None
) -> Iterator[tuple[Tensor, Framing, Tensor | None]]:
    """Yield latent, framing and latent mask of every view of a picture.

    Args:
        base: Base whose VAE encodes the picture; it need not be loaded.
        image: Picture, resized and cropped.
        flip: Setting ``flip``, a key of ``VIEWS``.
        mask: ``(height, width)``, weight of each pixel in 0..1.

    Raises:
        RuntimeError: The VAE gives NaN.
    """
    (height, width), (top, left) = image.original_size, image.crop
    framing = Framing(width, height, left, top, image.size[1], image.size[0])
    for mirrored in VIEWS[flip]:
        latent = base.latent(image, mirrored)
        counts = None
        if mask is not None:
            counts = latent_mask(mask.flip(1) if mirrored else mask, latent)
        yield latent, framing, counts


def captioned_examples(
    base: Base, pictures: Sequence[Picture], settings: TrainingSettings
) -> list[list[Example]]:
    """Return the encoded examples of captioned pictures, one list for every view.

    Args:
        base: Base whose text encoder and VAE encode the pictures; it need not be loaded.
        pictures: Pictures with their captions, in order.
        settings: Training settings; mirroring and caption dropout are used.

    Raises:
        ValueError: Cropping leaves nothing of what a mask selects.
        RuntimeError: The VAE gives NaN.
    """
    empty = training_caption(base, "", settings) if settings.caption_dropout else None
    captions = dict.fromkeys(picture.caption for picture in pictures)
    texts = {text: training_caption(base, text, settings) for text in captions}
    examples: list[list[Example]] = [[] for _ in VIEWS[settings.flip]]
    for picture in pictures:
        image, mask = picture.fitted()
        views = picture_views(base, image, settings.flip, mask)
        for view, (latent, framing, counts) in zip(examples, views, strict=True):
            text = texts[picture.caption]
            view.append(example(base.model, latent, text, empty, framing, counts))
    return examples


def example(
    model: ModelPatcher,
    latent: Tensor,
    text: Caption,
    uncond: Caption | None = None,
    framing: Framing | None = None,
    mask: Tensor | None = None,
) -> Example:
    """Return the example of a latent ``(channel, ...)`` and its captions."""
    dropped = None if uncond is None else caption_cond(model, uncond, latent, framing)
    return Example(latent, caption_cond(model, text, latent, framing), mask, dropped)


def latent_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """Return the weight of each latent cell, which is the mean weight of its pixels.

    Args:
        mask: ``(height, width)`` in 0..1.
        latent: ``(channel, ..., height, width)``; only its shape is read.
    """
    shrunk = F.interpolate(mask[None, None].float(), size=latent.shape[-2:], mode="area")[0]
    frames = latent.shape[1:-2]  # frames of a video share one mask
    return (
        shrunk.reshape(1, *[1] * len(frames), *shrunk.shape[-2:])
        .expand(1, *latent.shape[1:])
        .clone()
    )


def preview_scene(
    base: Base,
    settings: TrainingSettings,
    prompts: Sequence[str],
    gates: tuple[RowGates, RowGates],
    latent: Tensor,
) -> PreviewScene:
    """Return the scene of the previews, for the settings' prompt or else the trainer's first.

    Args:
        base: Base that encodes the prompts and decodes the pictures; it need not be loaded.
        settings: Training settings.
        prompts: Prompts of the trainer.
        gates: Gates of the prompt's row and of the empty prompt's row.
        latent: ``(channel, ...)``; only its shape is read.
    """
    prompt = settings.preview_prompt.strip() or prompts[0]
    cond, uncond = (
        caption_cond(base.model, training_caption(base, text, settings), latent)
        for text in (prompt, "")
    )
    return PreviewScene(base.vae, cond, uncond, *gates, latent.shape)
