"""Load and save files of Break-for-Make halves."""

from __future__ import annotations

from collections.abc import Mapping

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.files.half import FROM_FILE, as_half, half_layers, half_metadata
from ...training.files.lora_state import LoraState, metadata_of
from ..lora.files import load_lora, save_lora

ROLE_CHOICES = (FROM_FILE, "content", "style")
OWNER_CHOICES = (FROM_FILE, "down", "up")

_TRIGGER = "modelspec.trigger_phrase"


def load_half(name: str, role: str = FROM_FILE, content_owns: str = FROM_FILE) -> LoraState:
    """Return a half by its name in ComfyUI's list of LoRAs.

    Args:
        name: Name in the list.
        role: Role of the half, one of ``ROLE_CHOICES``; only files of the released code need it.
        content_owns: Part that contents own, one of ``OWNER_CHOICES``.

    Raises:
        ValueError: The file is missing, damaged or not a half, or contradicts the choices.
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
        half: Tensors of the half with their metadata.
        filename: ``name`` or ``subfolder/name``.
        precision: Precision of the factors, one of ``lora_file.PRECISIONS``.
        model: Base model, used if the half's metadata do not name one.
        trigger: Trigger words; if empty, those in the metadata, or else the token.
        image: Picture for the thumbnail and the preview.

    Raises:
        ValueError: The LoRA is not a half, or ``save_lora`` raises.
        RuntimeError: No folder can be written to, or the disk is full; nothing is written.
    """
    token = half_metadata(half).token
    half_layers(half)
    words = trigger.strip() or metadata_of(half).get(_TRIGGER, "") or token
    return save_lora(half, filename, precision, model=model, trigger=words, image=image)
