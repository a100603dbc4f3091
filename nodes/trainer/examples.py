"""A picture and its caption as the rows of a training see them: encoded, framed, masked."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.sd
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import Example, TrainingSettings
from ...training.gates import RowGates
from ..bridge.conditioning import Conditioning, encode_prompt
from ..pictures.fitted_image import FittedImage, encode
from ..pictures.picture import Picture
from ..text.live_caption import LearntCond, Wording
from ..text.training_cond import Framing, TrainingCond, training_cond, training_latent
from .preview import PreviewScene

VIEWS = {"never": (False,), "always": (True,), "random": (False, True)}
"""Whether a picture is mirrored, once for every way that the setting ``flip`` shows it."""

Caption = Conditioning | Wording
"""A caption encoded once, or to be encoded in every step."""


def read_caption(clip: comfy.sd.CLIP, text: str, settings: TrainingSettings) -> Caption:
    """Return a caption: encoded, unless the text encoder is trained."""
    return Wording.of(clip, text) if settings.text_encoder_rate else encode_prompt(clip, text)


def caption_cond(
    model: ModelPatcher, caption: Caption, latent: Tensor, framing: Framing | None = None
) -> TrainingCond | LearntCond:
    """Return a caption's conditions for one picture ``(channel, ...)``."""
    if isinstance(caption, Wording):
        return caption.cond(latent, framing)
    return training_cond(model, caption, latent, framing)


def picture_example(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    image: FittedImage,
    text: Caption,
    mirrored: bool = False,
    uncond: Caption | None = None,
    mask: Tensor | None = None,
) -> Example:
    """Return one picture as a row denoises it.

    Args:
        model: The base; need not be loaded.
        vae: Encodes the picture.
        image: On its frame.
        text: Of the caption.
        mirrored: Whether picture and mask are turned left to right.
        uncond: Of the empty caption, for caption dropout.
        mask: What each pixel counts, ``(height, width)`` of the frame.

    Raises:
        RuntimeError: The VAE gives NaN.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    latent = training_latent(model, encode(vae, image, mirrored))[0]
    (height, width), (top, left) = image.original_size, image.crop
    framing = Framing(width, height, left, top, image.size[1], image.size[0])
    counts = None
    if mask is not None:
        counts = latent_mask(mask.flip(1) if mirrored else mask, latent)
    return example(model, latent, text, uncond, framing, counts)


def captioned_examples(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    pictures: Sequence[Picture],
    settings: TrainingSettings,
) -> list[list[Example]]:
    """Return pictures with their captions as rows, encoded one by one, once for every view.

    Args:
        model: The base; need not be loaded.
        clip: Encodes the captions.
        vae: Encodes the pictures.
        pictures: In order.
        settings: Whether pictures are mirrored and captions dropped.

    Raises:
        ValueError: All that a mask lets count is cut away.
        RuntimeError: The VAE gives NaN.
    """
    empty = read_caption(clip, "", settings) if settings.caption_dropout else None
    captions = dict.fromkeys(picture.caption for picture in pictures)
    texts = {text: read_caption(clip, text, settings) for text in captions}
    views = VIEWS[settings.flip]
    examples: list[list[Example]] = [[] for _ in views]
    for picture in pictures:
        image, mask = picture.fitted()
        for view, mirrored in zip(examples, views, strict=True):
            view.append(
                picture_example(
                    model=model,
                    vae=vae,
                    image=image,
                    text=texts[picture.caption],
                    mirrored=mirrored,
                    uncond=empty,
                    mask=mask,
                )
            )
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
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    settings: TrainingSettings,
    prompts: Sequence[str],
    gates: tuple[RowGates, RowGates],
    latent: Tensor,
) -> PreviewScene:
    """Return what previews show: the settings' prompt, or the first of the trainer's own.

    Args:
        model: The base; need not be loaded.
        clip: Encodes the prompts.
        vae: Decodes the pictures.
        settings: Of the user.
        prompts: Of the trainer.
        gates: Of the prompt's row and of the empty prompt's.
        latent: ``(channel, ...)``; only its shape is read.
    """
    prompt = settings.preview_prompt.strip() or prompts[0]
    cond, uncond = (
        caption_cond(model, read_caption(clip, text, settings), latent) for text in (prompt, "")
    )
    return PreviewScene(vae, cond, uncond, *gates, latent.shape)
