"""Encode prompts to ComfyUI's CONDITIONING."""

from __future__ import annotations

from typing import Any, cast

from comfy.sd import CLIP

# ComfyUI's CONDITIONING: each entry holds a text tensor and a dictionary of options.
Conditioning = list[list[Any]]


def require_clip(clip: CLIP | None) -> None:
    """Raise unless there is a text encoder; a checkpoint may contain none.

    Raises:
        ValueError: The CLIP is missing.
    """
    if clip is None:
        raise ValueError(
            "a text encoder is needed to read the prompt, got none; connect the checkpoint's CLIP"
        )


def encode_prompt(clip: CLIP, text: str) -> Conditioning:
    """Return the CONDITIONING of a prompt, equal to the output of ComfyUI's own text encode node.

    Raises:
        ValueError: There is no text encoder.
    """
    require_clip(clip)
    # ComfyUI annotates the entries as tuples but returns lists.
    return cast(Conditioning, clip.encode_from_tokens_scheduled(clip.tokenize(text)))
