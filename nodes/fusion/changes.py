"""What a concept's LoRA changes, layer by layer, as factors that can be fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor, nn

from ...lora_ops import LowRank, factorised
from ...lora_ops.keys import NATIVE_PREFIX, parts_by_layer
from ...training.files.adapter_shapes import DORA, RESHAPE
from ...training.files.concept import Concept
from ...training.files.lora_file import require_named_once, sound
from ...training.gates import Site
from ..lora.apply import apply_lora
from ..lora.layers import patch_factors

KEPT_ENERGY = 0.9999
"""Of a change that is stored in another form than two factors."""
MOST_RANKS = 256
"""That such a change is given at most."""


@dataclass(frozen=True)
class Place:
    """Where a weight is changed: rows ``start`` to ``start + size`` of it, in a model or a CLIP.

    Args:
        key: Of the weight, as ComfyUI's patches name it.
        start: First row.
        size: How many rows.
    """

    key: str
    start: int
    size: int


@dataclass(frozen=True)
class Changes:
    """All that a concept's LoRA changes.

    Args:
        concept: Whose LoRA it is.
        factors: By place.
        used: Layers of the file that are fused.
        ignored: Layers of the file that cannot be: biases, norms, embeddings.
        missing: Layers of the file that the model and the CLIP don't have.
        kept: For LoHa, LoKr and stored differences, the least energy that their factors keep.
    """

    concept: Concept
    factors: Mapping[Place, LowRank]
    used: int
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    kept: Mapping[str, float]


def changes_of(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept) -> Changes:
    """Return what a concept's LoRA changes of a model and its text encoder.

    Names, alpha, slices of fused layers, Tucker factors and convolutions are read as ComfyUI's own
    loader reads them.

    Raises:
        ValueError: It was made for another base, or it is of a kind that depends on the weights
            it changes; the message names the concept.
    """
    if not concept.lora:
        return Changes(concept, {}, 0, (), (), {})
    try:
        apply_lora(model, clip, concept.lora, 1.0, 1.0)  # refuses another architecture's
    except ValueError as error:
        raise ValueError(f"{concept.name!r}: {error}") from error
    tensors = sound(comfy.lora_convert.convert_lora(dict(concept.lora)))
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    layers = parts_by_layer(tensors)
    _require_additive(concept, layers)
    require_named_once(layers, names)
    patches = comfy.lora.load_lora(tensors, names, log_missing=False)
    factors: dict[Place, LowRank] = {}
    ignored: list[str] = []
    kept: dict[str, float] = {}
    for target, patch in patches.items():
        comfy.model_management.throw_exception_if_processing_interrupted()
        key, offset, function = _parts(target)
        root = model.model if key.startswith(NATIVE_PREFIX) else clip.cond_stage_model
        site = _site(root, key, offset)
        if site is None:
            ignored.append(key)
            continue
        place = Place(key, site.start or 0, site.shape[0])
        if isinstance(patch, LoRAAdapter):
            factors[place] = patch_factors(key, patch, site.shape, function)
        else:
            kind, change = _dense(concept, key, patch, site, function)
            factors[place], energy = factorised(change, energy=KEPT_ENERGY, most=MOST_RANKS)
            kept[kind] = min(energy, kept.get(kind, 1.0))
    missing = tuple(layer for layer in layers if layer not in names)
    return Changes(concept, factors, len(factors), tuple(ignored), missing, kept)


def _require_additive(concept: Concept, layers: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse adapters that are no sum of the weight and a change, by name."""
    for layer, parts in layers.items():
        kind = "DoRA" if DORA in parts else "a reshaped control LoRA" if RESHAPE in parts else None
        if kind is not None:
            raise ValueError(
                "a LoRA that is fused must add a change to each weight (LoRA, LoCon, LoHa, LoKr), "
                f"got {kind} in {concept.name!r} (layer {layer[:80]!r}); fuse the others and put "
                "this one on the model after fusion"
            )


def _parts(target: str | tuple[Any, ...]) -> tuple[str, tuple[int, int, int] | None, Any]:
    return (target, None, None) if isinstance(target, str) else (*target, None)[:3]


def _site(root: nn.Module, key: str, offset: tuple[int, int, int] | None) -> Site | None:
    """Return the layer that a patch changes; None if its inputs have no statistics."""
    path, _, parameter = key.rpartition(".")
    module = comfy.utils.get_attr(root, path)
    weight = getattr(module, "weight", None)
    linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
    convolution = isinstance(module, nn.Conv2d) and module.groups == 1
    if parameter != "weight" or weight is None or not (linear or convolution):
        return None
    shape = tuple(weight.shape)
    if offset is None:
        return Site(module, shape)
    if offset[0] != 0:  # a slice of the input
        return None
    return Site(module, (offset[2], *shape[1:]), start=offset[1])


def _dense(concept: Concept, key: str, patch: Any, site: Site, function: Any) -> tuple[str, Tensor]:
    """Return the kind of a patch and its change of a weight, ``(out, in, ...)`` in fp32."""
    if isinstance(patch, LoHaAdapter):
        kind = "LoHa"
    elif isinstance(patch, LoKrAdapter):
        kind = "LoKr"
    elif isinstance(patch, tuple) and patch[0] == "diff":
        kind = "stored differences"
    else:
        name = getattr(patch, "name", None) or patch[0]
        raise ValueError(
            "a LoRA that is fused must add a change to each weight (LoRA, LoCon, LoHa, LoKr), got "
            f"one of kind {name} in {concept.name!r} ({key}); fuse the others and put this one on "
            "the model after fusion"
        )
    zeros = torch.zeros(site.shape)
    return kind, comfy.lora.calculate_weight([(1.0, patch, 1.0, None, function)], zeros, key)
