"""Encode one prompt with and without the style words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import comfy.sd
from comfy.sd import CLIP
from torch import Tensor

from ...lora_ops.keys import changes_text_encoder, parse_key
from ...training.files.lora_state import metadata_of
from ...training.files.metadata import STYLE_WORDS
from ..bridge.conditioning import Conditioning, encode_prompt


def style_prompts(
    clip: CLIP, prompt: str, style_words: str, style_lora: Mapping[str, Tensor] | None
) -> tuple[Conditioning, Conditioning, str]:
    """Return the plain and the styled CONDITIONING, and the styled prompt.

    Args:
        clip: The text encoder.
        prompt: Prompt without the style words.
        style_words: Words that name the style; empty to use those in the LoRA's metadata.
        style_lora: LoRA of the style. If it has text encoder layers, the styled prompt is encoded
            with them.

    Raises:
        ValueError: There are no style words, or no text encoder.
    """
    metadata = {} if style_lora is None else metadata_of(style_lora)
    words = style_words.strip() or metadata.get(STYLE_WORDS, "").strip()
    if not words:
        given = "none" if style_lora is None else "a LoRA that keeps none"
        raise ValueError(
            f"style_words must name the style, got an empty text and {given}; write the words "
            "that the style was trained with, or connect a LoRA of Train Pair"
        )
    styled = f"{prompt.strip()} {words}".strip()
    return (
        encode_prompt(clip, prompt),
        encode_prompt(_with_text_layers(clip, style_lora), styled),
        styled,
    )


def _with_text_layers(clip: CLIP, style_lora: Mapping[str, Tensor] | None) -> CLIP:
    """Return the CLIP with the LoRA's text encoder layers; the same CLIP if there are none."""
    text = {
        key: value
        for key, value in (style_lora or {}).items()
        if (found := parse_key(key)) is not None and changes_text_encoder(found.layer)
    }
    if not text:
        return clip
    # ComfyUI returns None for the CLIP only if it gets none.
    return cast(CLIP, comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)[1])
