"""Encode prompts to ComfyUI's CONDITIONING."""

from __future__ import annotations

from typing import Any

from comfy.sd import CLIP

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: entries of a text tensor and a dictionary."""


def require_clip(clip: CLIP | None) -> None:
    """Check that there is a text encoder: a checkpoint without one gives none.

    Raises:
        ValueError: There is none.
    """
    if clip is None:
        raise ValueError(
            "a text encoder is needed to read the prompt, got none; connect the checkpoint's CLIP"
        )


def encode_prompt(clip: CLIP, text: str) -> Conditioning:
    """Return the CONDITIONING of a prompt, as core's text encode node makes it.

    Raises:
        ValueError: There is no text encoder.
    """
    require_clip(clip)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
