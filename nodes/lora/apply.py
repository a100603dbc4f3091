"""Apply a LoRA to a model with ComfyUI's own patching, after checking that it fits.

ComfyUI only logs keys that it does not know and layers of another shape; here a LoRA that was made
for another base raises an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops.keys import NATIVE_PREFIX, changes_text_encoder, parts_by_layer
from ...training.families import Family
from ...training.files.adapter_shapes import bias_shape, change_of
from ...training.files.lora_file import require_named_once, sound
from ...training.files.lora_state import metadata_of
from ...training.files.metadata import family_of
from ..bridge.families import base_name, known_family
from ..bridge.node_output import warn_on_node


@dataclass(frozen=True)
class _ShapeMismatch:
    """A weight whose shape differs from that of the LoRA's change.

    Args:
        key: Key of the weight in the model.
        lora: Shape of the LoRA's change.
        model: Shape of the weight; empty if the model has no such weight.
    """

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
    """Return clones of the model and the CLIP with the LoRA applied, like ComfyUI's Load LoRA.

    Layers that the model lacks are skipped with one warning, and so are layers of the text encoder
    if there is no CLIP. If both strengths are 0, model and CLIP are returned unchanged.

    Args:
        model: Any MODEL.
        clip: Text encoder of the model, or None.
        lora: Tensors of the LoRA, with or without metadata.
        strength_model: Strength of the change to the model.
        strength_clip: Strength of the change to the text encoder.

    Raises:
        ValueError: The LoRA was made for another base: no layer fits, or a shape does not.
    """
    tensors = sound(comfy.lora_convert.convert_lora(dict(lora)))
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    layers = parts_by_layer(tensors)
    require_named_once(layers, names)
    known = [layer for layer in layers if layer in names]
    text = [] if clip else [layer for layer in layers if changes_text_encoder(layer)]
    unknown = [layer for layer in layers if layer not in names and layer not in text]
    family = known_family(model)
    base = base_name(model, family)
    made_for = _other_base(family, lora)
    if not known:
        raise ValueError(_no_layer_fits(base, len(layers), len(text), made_for))
    if unknown and made_for:
        raise ValueError(
            f"the LoRA must be made for this model, {base}, got one{made_for}: {len(unknown)} of "
            f"its {len(layers)} layers are not in this one; choose a LoRA made for it"
        )
    mismatches: list[_ShapeMismatch] = []
    for layer in known:
        parts = {part: tensors[key] for part, key in layers[layer].items()}
        mismatches += _shape_mismatches(model, clip, names[layer], parts)
    if mismatches:
        first = mismatches[0]
        raise ValueError(
            f"the LoRA must be made for this model, {base}, got one{made_for} whose shapes differ "
            f"in {len(mismatches)} of {len(known)} layers (first: {first.key}, {first.lora} for a "
            f"weight of {first.model}); choose a LoRA made for it"
        )
    matched = {key: tensors[key] for layer in known for key in layers[layer].values()}
    _warn_about_skipped_layers(layers, unknown, text, made_for)
    if strength_model == 0 and strength_clip == 0:
        return model, clip
    patched = comfy.sd.load_lora_for_models(
        model, clip, matched, strength_model, strength_clip, lora_metadata=metadata_of(lora)
    )
    # ComfyUI returns None only in the place of an argument that is None.
    return cast("tuple[ModelPatcher, comfy.sd.CLIP | None]", patched)


def _other_base(family: Family | None, lora: Mapping[str, Tensor]) -> str:
    """Return a phrase with the family in the LoRA's metadata; empty if it is the model's family."""
    made_for = family_of(metadata_of(lora))
    if family is None or made_for in (None, family):
        return ""
    return f" made for {made_for.name}"


def _no_layer_fits(model: str, layers: int, text: int, made_for: str) -> str:
    if text == layers:
        return (
            f"clip must be connected, got a LoRA{made_for} whose {layers} layers all belong to "
            "the text encoder; connect CLIP"
        )
    return (
        f"the LoRA must be made for this model, {model}, got one{made_for} with {layers} layers, "
        "none of which is in it; choose a LoRA made for it"
    )


def _shape_mismatches(
    model: ModelPatcher,
    clip: comfy.sd.CLIP | None,
    target: str | tuple[Any, ...],
    parts: Mapping[str, Tensor],
) -> Iterable[_ShapeMismatch]:
    """Yield the weight and the bias of a layer if the LoRA's change has another shape.

    Args:
        model: Any MODEL.
        clip: Text encoder of the model, or None.
        target: Entry of ComfyUI's key map: the key of a weight, or a key and a slice.
        parts: Tensors of the layer by their part.
    """
    key, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
    shape = _weight_shape(model, clip, key)
    if shape and offset is not None:
        shape[offset[0]] = offset[2]
    change, bias = change_of(parts), bias_shape(parts)
    if change is not None and not (shape and change.fits(shape)):
        columns = math.prod(shape[1:])
        # Factors of a convolution may be stored flat, and those of a linear layer as a 1x1
        # convolution.
        flat = not change.exact and len(shape) > 2 and change.shape[1:] == (columns,)
        whole = (change.shape[0], *shape[1:]) if flat else change.shape
        yield _ShapeMismatch(key, whole, tuple(shape))
    if bias is not None:
        # ComfyUI has no key for the bias of a slice.
        key = f"{key.removesuffix('.weight')}.bias"
        shape = [] if offset is not None else _weight_shape(model, clip, key)
        if bias != tuple(shape):
            yield _ShapeMismatch(key, bias, tuple(shape))


def _weight_shape(model: ModelPatcher, clip: comfy.sd.CLIP | None, key: str) -> list[int]:
    """Return the shape of a parameter, or an empty list if there is no such parameter.

    The state dict can't be used, because its entries are packed if the weight is quantised.
    """
    root = model.model if key.startswith(NATIVE_PREFIX) or clip is None else clip.cond_stage_model
    try:
        weight = comfy.utils.get_attr(root, key)
    except AttributeError:
        return []
    return [] if weight is None else list(weight.shape)


def _warn_about_skipped_layers(
    layers: Mapping[str, object], unknown: list[str], text: list[str], made_for: str
) -> None:
    if unknown:
        warn_on_node(
            f"{len(unknown)} of the LoRA's {len(layers)} layers are not in this model and are left "
            f"out (first: {unknown[0][:80]!r})"
        )
    if text:
        warn_on_node(
            f"{len(text)} of the LoRA's {len(layers)} layers belong to the text encoder and are "
            "left out, because no CLIP is connected"
        )
    if made_for:
        warn_on_node(f"the LoRA says it was{made_for}; its layers fit this model")
