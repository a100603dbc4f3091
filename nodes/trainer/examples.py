"""Pictures and captions as the rows of a training see them: encoded, framed, masked."""

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

VIEWS = {"never": (False,), "always": (True,), "random": (False, True)}
"""Whether a picture is mirrored, once for every way that the setting ``flip`` shows it."""


def read_caption(base: Base, text: str, settings: TrainingSettings) -> Caption:
    """Return a caption: encoded, unless the text encoder is trained."""
    return (
        TokenizedCaption.of(base.clip, text) if settings.text_encoder_rate else base.caption(text)
    )


def caption_cond(
    model: ModelPatcher, caption: Caption, latent: Tensor, framing: Framing | None = None
) -> TrainingCond | LiveCaption:
    """Return a caption's conditions for one picture ``(channel, ...)``."""
    if isinstance(caption, TokenizedCaption):
        return caption.cond(latent, framing)
    return training_cond(model, caption, latent, framing)


def picture_views(
    base: Base, image: FittedImage, flip: str, mask: Tensor | None = None
) -> Iterator[tuple[Tensor, Framing, Tensor | None]]:
    """Yield a picture's latent, framing and latent mask, once for every view.

    Args:
        base: Encodes the picture; need not be loaded.
        image: The picture on its frame.
        flip: One of ``VIEWS``.
        mask: What each pixel counts, ``(height, width)`` of the frame.

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
    """Return pictures with their captions as rows, encoded one by one, once for every view.

    Args:
        base: Encodes pictures and captions; need not be loaded.
        pictures: Pictures in order.
        settings: Whether pictures are mirrored and captions dropped.

    Raises:
        ValueError: All that a mask lets count is cut away.
        RuntimeError: The VAE gives NaN.
    """
    empty = read_caption(base, "", settings) if settings.caption_dropout else None
    captions = dict.fromkeys(picture.caption for picture in pictures)
    texts = {text: read_caption(base, text, settings) for text in captions}
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
    """Return an encoded picture ``(channel, ...)`` with its caption's conditions."""
    dropped = None if uncond is None else caption_cond(model, uncond, latent, framing)
    return Example(latent, caption_cond(model, text, latent, framing), mask, dropped)


def latent_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """Return what each cell of a latent counts: the mean of the pixels under it.

    Args:
        mask: ``(height, width)`` in 0..1.
        latent: ``(channel, ..., height, width)``; only its shape is read.
    """
    shrunk = F.interpolate(mask[None, None].float(), size=latent.shape[-2:], mode="area")[0]
    frames = latent.shape[1:-2]  # of a video; one mask serves all
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
    """Return what previews show: the settings' prompt, or the first of the trainer's own.

    Args:
        base: Encodes the prompts and decodes the pictures; need not be loaded.
        settings: The user's settings.
        prompts: The trainer's prompts.
        gates: Gates of the prompt's row and of the empty prompt's.
        latent: ``(channel, ...)``; only its shape is read.
    """
    prompt = settings.preview_prompt.strip() or prompts[0]
    cond, uncond = (
        caption_cond(base.model, read_caption(base, text, settings), latent)
        for text in (prompt, "")
    )
    return PreviewScene(base.vae, cond, uncond, *gates, latent.shape)
