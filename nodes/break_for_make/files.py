"""Break-for-Make's halves to files and back: which half a file is, and by which word."""

from __future__ import annotations

from collections.abc import Mapping

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.files.half import AS_SAID, as_half, half_layers, half_metadata
from ...training.files.lora_state import LoraState, metadata_of
from ..lora.files import load_lora, save_lora

ROLE_CHOICES = (AS_SAID, "content", "style")
OWNER_CHOICES = (AS_SAID, "down", "up")

_TRIGGER = "modelspec.trigger_phrase"


def load_half(name: str, role: str = AS_SAID, content_owns: str = AS_SAID) -> LoraState:
    """Return a half of ComfyUI's list of LoRAs.

    Args:
        name: As the list has it.
        role: One of ``ROLE_CHOICES``; a half of this pack says it itself.
        content_owns: One of ``OWNER_CHOICES``; likewise.

    Raises:
        ValueError: It is missing, damaged or no half, or says otherwise than the choices do.
    """
    lora = load_lora(name)
    try:
        return as_half(lora, role, content_owns)
    except ValueError as error:
        raise ValueError(f"{name!r} cannot be loaded as a half: {error}") from error


def save_half(
    half: Mapping[str, Tensor],
    filename: str,
    precision: str,
    *,
    model: ModelPatcher | None = None,
    trigger: str = "",
    image: Tensor | None = None,
) -> str:
    """Write a half into the first writable LoRA folder and return its name in ComfyUI's lists.

    Args:
        half: What travels on the wire.
        filename: As ``save_lora`` takes it, and so are the others.
        precision: Of the factors.
        model: Names the base where the half does not.
        trigger: Words that call it up; empty: those it has, else its token.
        image: Thumbnail and preview.

    Raises:
        ValueError: It is no half, or ``save_lora`` refuses it.
        RuntimeError: As ``save_lora`` has it.
    """
    facts = half_metadata(half)
    half_layers(half)
    words = trigger.strip() or metadata_of(half).get(_TRIGGER, "") or facts.token
    return save_lora(half, filename, precision, model=model, trigger=words, image=image)
