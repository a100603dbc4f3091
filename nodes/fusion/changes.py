"""Read a concept's LoRA as low-rank factors of the weights that it changes."""

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

# Changes that are not stored as two factors (LoHa, LoKr, stored differences) are factorised: with
# as many ranks as keep this fraction of their energy, up to the maximum rank.
KEPT_ENERGY = 0.9999
MAX_RANK = 256


@dataclass(frozen=True)
class WeightSlice:
    """Rows ``start`` to ``start + size`` of a weight of a model or a CLIP.

    Args:
        key: Key of the weight in ComfyUI's patches.
        start: First row.
        size: Number of rows.
    """

    key: str
    start: int
    size: int


@dataclass(frozen=True)
class ConceptChanges:
    """All changes of a concept's LoRA.

    Args:
        concept: The concept.
        factors: Factors of the changes by slice of a weight.
        used: Number of layers of the file that are fused.
        ignored: Layers of the file that cannot be fused: biases, norms, embeddings.
        missing: Layers of the file that the model and the CLIP don't have.
        kept_energy: Lowest fraction of a change's energy that its factors keep, by form: LoHa,
            LoKr and stored differences.
    """

    concept: Concept
    factors: Mapping[WeightSlice, LowRank]
    used: int
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    kept_energy: Mapping[str, float]


def changes_of(model: ModelPatcher, clip: comfy.sd.CLIP, concept: Concept) -> ConceptChanges:
    """Return the changes of a concept's LoRA to a model and its text encoder.

    Names, alpha, slices of fused layers, Tucker factors and convolutions are read by ComfyUI's own
    loader.

    Raises:
        ValueError: The LoRA was made for another base, or it is of a kind that depends on the
            weights it changes; the message names the concept.
    """
    if not concept.lora:
        return ConceptChanges(concept, {}, 0, (), (), {})
    try:
        apply_lora(model, clip, concept.lora, 1.0, 1.0)  # refuses a LoRA of another architecture
    except ValueError as error:
        raise ValueError(f"{concept.name!r}: {error}") from error
    tensors = sound(comfy.lora_convert.convert_lora(dict(concept.lora)))
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    layers = parts_by_layer(tensors)
    _require_additive(concept, layers)
    require_named_once(layers, names)
    patches = comfy.lora.load_lora(tensors, names, log_missing=False)
    factors: dict[WeightSlice, LowRank] = {}
    ignored: list[str] = []
    kept_energy: dict[str, float] = {}
    for target, patch in patches.items():
        comfy.model_management.throw_exception_if_processing_interrupted()
        key, offset, function = _target_parts(target)
        root = model.model if key.startswith(NATIVE_PREFIX) else clip.cond_stage_model
        site = _site(root, key, offset)
        if site is None:
            ignored.append(key)
            continue
        rows = WeightSlice(key, site.start or 0, site.shape[0])
        if isinstance(patch, LoRAAdapter):
            factors[rows] = patch_factors(key, patch, site.shape, function)
        else:
            kind, change = _dense_change(concept, key, patch, site, function)
            factors[rows], energy = factorised(change, energy=KEPT_ENERGY, most=MAX_RANK)
            kept_energy[kind] = min(energy, kept_energy.get(kind, 1.0))
    missing = tuple(layer for layer in layers if layer not in names)
    return ConceptChanges(concept, factors, len(factors), tuple(ignored), missing, kept_energy)


def _require_additive(concept: Concept, layers: Mapping[str, Mapping[str, str]]) -> None:
    """Raise if an adapter does more than add a change to the weight; the message names its kind."""
    for layer, parts in layers.items():
        kind = "DoRA" if DORA in parts else "a reshaped control LoRA" if RESHAPE in parts else None
        if kind is not None:
            raise ValueError(
                "a LoRA that is fused must add a change to each weight (LoRA, LoCon, LoHa, LoKr), "
                f"got {kind} in {concept.name!r} (layer {layer[:80]!r}); fuse the others and put "
                "this one on the model after fusion"
            )


def _target_parts(target: str | tuple[Any, ...]) -> tuple[str, tuple[int, int, int] | None, Any]:
    """Return the key, the slice and the conversion function of a target of ComfyUI's loader."""
    if isinstance(target, str):
        return target, None, None
    key, offset, *function = target
    return key, offset, function[0] if function else None


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


def _dense_change(
    concept: Concept, key: str, patch: Any, site: Site, function: Any
) -> tuple[str, Tensor]:
    """Return a patch's kind and its dense change of a weight, ``(out, in, ...)`` in fp32."""
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
