"""Find the layers that several LoRAs change, and the distinct inputs that these layers read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.lora
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...lora_ops import LowRank
from ...lora_ops.keys import NATIVE_PREFIX
from ...training.families import Family
from ...training.families.family import FusionStage, matches
from .changes import ConceptChanges, WeightSlice

# Full Gram matrices are collected up to this input width. Wider inputs are projected to the span of
# the LoRAs' factors.
WIDEST = 4096

# Layers of text encoders that read the same tensor, and the one of them whose input is collected.
_SHARED_IN_TEXT: tuple[tuple[str, str], ...] = (
    (r"(\.self_attn\.)[qkv]_proj$", r"\1q_proj"),
    (r"(\.SelfAttention\.)[qkv]$", r"\1q"),
    (r"(\.DenseReluDense\.)wi_[01]$", r"\1wi_0"),
)


@dataclass(frozen=True)
class FusedLayer:
    """A layer, or some rows of its weight, whose changes are fused into one change.

    Args:
        name: Name in a LoRA file.
        weight_slice: Rows of the weight that are changed.
        shape: Shape of the change, ``(out, in, ...)``.
        stage: Stage in which it is fused.
        site: Path of the module whose input is collected: this layer, or one with the same input.
    """

    name: str
    weight_slice: WeightSlice
    shape: tuple[int, ...]
    stage: FusionStage
    site: str

    @property
    def width(self) -> int:
        """Return the width of an input row; a convolution reads whole patches."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """All layers that are fused, and each concept's changes of them.

    Args:
        layers: Layers in the order in which the LoRAs first change them.
        factors: Factors by layer name, for each concept.
    """

    layers: tuple[FusedLayer, ...]
    factors: tuple[Mapping[str, LowRank], ...]

    def of_stage(self, stage: FusionStage) -> list[FusedLayer]:
        """Return the layers of a stage."""
        return [layer for layer in self.layers if layer.stage == stage]

    def count_shared(self) -> int:
        """Return the number of layers that more than one concept changes."""
        return sum(
            sum(layer.name in factors for factors in self.factors) > 1 for layer in self.layers
        )


def layout_of(
    model: ModelPatcher, clip: comfy.sd.CLIP, family: Family, changes: Sequence[ConceptChanges]
) -> Layout:
    """Return the layers that several LoRAs change, with each LoRA's factors of them.

    Slices of a weight that overlap, such as one file's q, k, v and another's qkv, become one layer;
    other slices stay separate. If a merged slice has no name in LoRA files, it is widened to the
    whole weight.
    """
    names = _file_names(model, clip, family)
    spans: dict[str, list[tuple[int, int]]] = {}
    for one in changes:
        for rows in one.factors:
            spans.setdefault(rows.key, []).append((rows.start, rows.start + rows.size))
    layers: list[FusedLayer] = []
    factors: list[dict[str, LowRank]] = [{} for _ in changes]
    for key, found in spans.items():
        weight = module_at(model, clip, key.removesuffix(".weight")).weight
        assert isinstance(weight, torch.Tensor)  # ``changes_of`` has read its shape
        shape = tuple(weight.shape)
        merged = _merged(found)
        if any(WeightSlice(key, start, end - start) not in names for start, end in merged):
            merged = [(0, shape[0])]
        for start, end in merged:
            layer = _layer(WeightSlice(key, start, end - start), shape, names, family)
            layers.append(layer)
            for own, one in zip(factors, changes, strict=True):
                inside = {p: f for p, f in one.factors.items() if _contains(layer.weight_slice, p)}
                if inside:
                    own[layer.name] = _joint_factors(layer, inside)
    return Layout(tuple(layers), tuple(factors))


def module_at(model: ModelPatcher, clip: comfy.sd.CLIP, path: str) -> nn.Module:
    """Return the module at a path, such as ``FusedLayer.site``, of a model or a CLIP."""
    root = model.model if path.startswith(NATIVE_PREFIX) else clip.cond_stage_model
    return comfy.utils.get_attr(root, path)


def context_index(model: ModelPatcher) -> dict[str, int]:
    """Return the index of the context that each cross-attention of a UNet reads, by its path."""
    found: dict[str, int] = {}
    count = 0
    for path, module in model.model.named_modules():
        if isinstance(module, SpatialTransformer):
            found[f"{path}."] = count
            count += 1
    return found


def _file_names(model: ModelPatcher, clip: comfy.sd.CLIP, family: Family) -> dict[WeightSlice, str]:
    """Return the names in LoRA files by slice of a weight, in the form that most programs read."""
    names: dict[WeightSlice, str] = {}
    maps = [
        (model.model, comfy.lora.model_lora_keys_unet(model.model, {})),
        (clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})),
    ]
    text = maps[1][1]
    both = any(name.startswith("lora_te2_") for name in text)
    preferred = (
        *(("lora_te1_", "lora_te2_") if both else ("lora_te_",)),
        "lora_unet_" if family.kohya_keys else NATIVE_PREFIX,
    )
    for root, targets in maps:
        weights = dict(root.named_parameters())
        for name, target in targets.items():
            key, offset = (target, None) if isinstance(target, str) else target[:2]
            converted = not isinstance(target, str) and len(target) > 2
            # The maps also name layers that this size of the network lacks.
            if key not in weights or converted or (offset and offset[0] != 0):
                continue
            start, size = (0, len(weights[key])) if offset is None else offset[1:]
            rows = WeightSlice(key, start, size)
            # ComfyUI lists a UNet layer's native name first, its usual one later.
            if rows not in names or name.startswith(preferred):
                names[rows] = name
    return names


def _layer(
    rows: WeightSlice, weight: tuple[int, ...], names: Mapping[WeightSlice, str], family: Family
) -> FusedLayer:
    """Return the layer of a weight's rows, with its name, its stage and its site."""
    path = rows.key.removesuffix(".weight")
    stage: FusionStage = "spatial"
    if not path.startswith(NATIVE_PREFIX):
        stage = "text"
    elif "cross" in family.fusion_stages and matches(family.layers.text_keys_values, path):
        stage = "cross"
    site = path
    shared = _SHARED_IN_TEXT if stage == "text" else family.layers.shared_inputs
    for pattern, representative in shared:
        site = re.sub(pattern, representative, path)
        if site != path or re.search(pattern, path):
            break
    return FusedLayer(names[rows], rows, (rows.size, *weight[1:]), stage, site)


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans, sorted, with overlapping ones merged."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(set(spans)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _contains(outer: WeightSlice, inner: WeightSlice) -> bool:
    return (
        outer.key == inner.key
        and outer.start <= inner.start
        and inner.start + inner.size <= outer.start + outer.size
    )


def _joint_factors(layer: FusedLayer, parts: Mapping[WeightSlice, LowRank]) -> LowRank:
    """Return the factors of several slices as factors of the layer that contains them."""
    if set(parts) == {layer.weight_slice}:
        return parts[layer.weight_slice]
    ups, downs = [], []
    for rows, factors in parts.items():
        up = torch.zeros(layer.shape[0], factors.rank)
        start = rows.start - layer.weight_slice.start
        up[start : start + rows.size] = factors.up.flatten(1).float() * factors.scale
        ups.append(up)
        downs.append(factors.down.float())
    up = torch.cat(ups, 1)
    return LowRank(torch.cat(downs), up.view(*up.shape, *(1,) * (len(layer.shape) - 2)))
