"""A LoRA on a model through ComfyUI's own patching, after a check that it fits.

ComfyUI skips keys that it does not know and layers of another shape, with no more than a line
in the log; here a LoRA of another base is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...lora_ops.keys import NATIVE_PREFIX, changes_text_encoder, parts_by_layer
from ...training.families import Family
from ...training.lora_file import respelled
from ...training.lora_metadata import family_of
from ...training.state import metadata_of
from .families import identify


@dataclass(frozen=True)
class _Misfit:
    """A layer whose change has another shape than the weight."""

    key: str
    lora: tuple[int, ...]
    model: tuple[int, ...]


def apply_lora(
    model: ModelPatcher,
    clip: comfy.sd.CLIP | None,
    lora: Mapping[str, Tensor],
    strength_model: float,
    strength_clip: float,
) -> tuple[ModelPatcher, comfy.sd.CLIP | None]:
    """Return the model and the CLIP with the LoRA on them, as ComfyUI's Load LoRA would.

    Layers that the model lacks are left out with one warning, as are those of the text encoder
    where no CLIP is given.

    Args:
        model: Any MODEL.
        clip: Its CLIP, or None.
        lora: What travels on the wire; a plain dict serves too.
        strength_model: Of the change to the model.
        strength_clip: Of the change to the text encoder.

    Raises:
        ValueError: The LoRA was made for another base: no layer fits, or a shape does not.
    """
    tensors = respelled(comfy.lora_convert.convert_lora(dict(lora)))
    layers = parts_by_layer(tensors)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    known = [layer for layer in layers if layer in names]
    text = [] if clip else [layer for layer in layers if changes_text_encoder(layer)]
    unknown = [layer for layer in layers if layer not in names and layer not in text]
    family = _family_of(model)
    base = type(model.model).__name__ if family is None else family.name
    made_for = _other_base(family, lora)
    if not known:
        raise ValueError(_nothing_fits(base, len(layers), len(text), made_for))
    if unknown and made_for:
        raise ValueError(
            f"the LoRA must be made for this model, {base}, got one{made_for}: {len(unknown)} of "
            f"its {len(layers)} layers are not in this one; choose a LoRA made for it"
        )
    matched = {key: tensors[key] for layer in known for key in layers[layer].values()}
    patches = comfy.lora.load_lora(matched, names, log_missing=False)
    misfits = list(_misfits(model, clip, patches))
    if misfits:
        first = misfits[0]
        raise ValueError(
            f"the LoRA must be made for this model, {base}, got one{made_for} whose shapes differ "
            f"in {len(misfits)} of {len(patches)} layers (first: {first.key}, {first.lora} for a "
            f"weight of {first.model}); choose a LoRA made for it"
        )
    _warn_of_the_rest(layers, unknown, text, made_for)
    if strength_model == 0 and strength_clip == 0:
        return model, clip
    return comfy.sd.load_lora_for_models(
        model, clip, matched, strength_model, strength_clip, lora_metadata=metadata_of(lora)
    )


def _family_of(model: ModelPatcher) -> Family | None:
    try:
        return identify(model)
    except ValueError:  # LoRAs work on more models than the pack trains
        return None


def _other_base(family: Family | None, lora: Mapping[str, Tensor]) -> str:
    """Return the family the LoRA's metadata name, in words, if it is not the model's."""
    made_for = family_of(metadata_of(lora))
    if family is None or made_for in (None, family):
        return ""
    return f" made for {made_for.name}"


def _nothing_fits(model: str, layers: int, text: int, made_for: str) -> str:
    if text == layers:
        return (
            f"clip must be connected, got a LoRA{made_for} whose {layers} layers all belong to "
            "the text encoder; connect CLIP"
        )
    return (
        f"the LoRA must be made for this model, {model}, got one{made_for} with {layers} layers, "
        "none of which is in it; choose a LoRA made for it"
    )


def _misfits(
    model: ModelPatcher, clip: comfy.sd.CLIP | None, patches: Mapping[object, object]
) -> Iterable[_Misfit]:
    for target, patch in patches.items():
        key, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
        shape = _weight_shape(model, clip, key)
        if shape and offset is not None:
            shape[offset[0]] = offset[2]
        change = _shape_of(patch, shape)
        if change is not None and change != tuple(shape):
            yield _Misfit(key, change, tuple(shape))


def _weight_shape(model: ModelPatcher, clip: comfy.sd.CLIP | None, key: str) -> list[int]:
    """Return a parameter's shape, empty if there is none of that name.

    Of the parameter, not of its entry in the state dict, which is packed where it is quantised.
    """
    root = model.model if key.startswith(NATIVE_PREFIX) or clip is None else clip.cond_stage_model
    try:
        weight = comfy.utils.get_attr(root, key)
    except AttributeError:
        return []
    return [] if weight is None else list(weight.shape)


def _shape_of(patch: object, shape: list[int]) -> tuple[int, ...] | None:
    """Return the shape of a patch's change, None for kinds that ComfyUI alone understands."""
    if isinstance(patch, tuple):
        return tuple(patch[1][0].shape)
    if not isinstance(patch, LoRAAdapter) or patch.weights[5] is not None:
        return None
    up, down, mid = patch.weights[0], patch.weights[1], patch.weights[3]
    if mid is not None:
        return (up.shape[0], down.shape[1], *mid.shape[2:])
    # A convolution's factor may be stored flat, and a linear layer's as a 1x1 convolution's.
    fits = down[0].numel() == math.prod(shape[1:])
    return (up.shape[0], *(shape[1:] if fits else down.shape[1:]))


def _warn_of_the_rest(
    layers: Mapping[str, object], unknown: list[str], text: list[str], made_for: str
) -> None:
    if unknown:
        logging.warning(
            "Pastiche: %d of the LoRA's %d layers are not in this model and are left out "
            "(first: %s).",
            len(unknown),
            len(layers),
            unknown[0],
        )
    if text:
        logging.warning(
            "Pastiche: %d of the LoRA's %d layers belong to the text encoder and are left out, "
            "because no CLIP is connected.",
            len(text),
            len(layers),
        )
    if made_for:
        logging.warning("Pastiche: the LoRA says it was%s; its layers fit this model.", made_for)
