"""Find the layers of a text encoder that can be trained."""

from __future__ import annotations

import comfy.lora
import torch
from comfy.sd import CLIP

from ...training.gates import Layer
from .trainable_encoder import encoders_of

TRAINABLE = ("clip_l", "clip_g")  # text encoders whose layers can be trained


def text_layers(clip: CLIP, learning_rate: float) -> dict[str, Layer]:
    """Return the attention layers of CLIP-L and CLIP-G by their name in a LoRA file.

    Raises:
        ValueError: The CLIP has neither of the two.
    """
    trainable = _require_trainable(clip)
    model = clip.cond_stage_model
    names = _file_names(model)
    return {
        names[path]: Layer(path, tuple(module.weight.shape), learning_rate=learning_rate)
        for path, module in model.named_modules()
        if path.partition(".")[0] in trainable
        and path.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "out_proj")
    }


def _file_names(model: torch.nn.Module) -> dict[str, str]:
    """Return the layers' names in a file by module path; kohya's name if there is one."""
    names: dict[str, str] = {}
    both = {"clip_l", "clip_g"} <= encoders_of(model).keys()
    kohya = ("lora_te1_", "lora_te2_") if both else ("lora_te_",)
    for name, key in comfy.lora.model_lora_keys_clip(model, {}).items():
        path = key.removesuffix(".weight")
        if name.startswith(kohya) or path not in names:
            names[path] = name
    return names


def _require_trainable(clip: CLIP) -> list[str]:
    """Return the text encoders that can be trained.

    Raises:
        ValueError: None of the CLIP's text encoders can be trained.
    """
    model = clip.cond_stage_model
    trainable = [name for name in encoders_of(model) if name in TRAINABLE]
    if not trainable:
        held = ", ".join(encoders_of(model)) or type(model).__name__
        raise ValueError(
            f"a text encoder that is trained must be {' or '.join(TRAINABLE)}, got {held}; set the "
            "text encoder's learning rate to 0 or connect another CLIP"
        )
    return trainable
