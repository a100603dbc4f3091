"""The layers that concepts change together, and the distinct inputs that these layers read."""

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
from .changes import Changes, Place

Stage = FusionStage

WIDEST = 4096
"""Of an input whose full statistics are kept; wider ones are seen within the span of the LoRAs."""

# Layers of text encoders that read the same tensor, and the one among them that is watched.
_SHARED_IN_TEXT: tuple[tuple[str, str], ...] = (
    (r"(\.self_attn\.)[qkv]_proj$", r"\1q_proj"),
    (r"(\.SelfAttention\.)[qkv]$", r"\1q"),
    (r"(\.DenseReluDense\.)wi_[01]$", r"\1wi_0"),
)


@dataclass(frozen=True)
class FusedLayer:
    """A layer, or rows of a fused one, whose changes are fused into one.

    Args:
        name: In a LoRA file.
        place: Which rows of which weight.
        shape: Of the change, ``(out, in, ...)``.
        stage: When it is fused.
        site: Whose input it reads: the path of the module that is watched.
    """

    name: str
    place: Place
    shape: tuple[int, ...]
    stage: Stage
    site: str

    @property
    def width(self) -> int:
        """Return the width of an input row; a convolution's is a whole patch."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """All layers that are fused, and what each concept wants of them.

    Args:
        layers: In the order of the first LoRA that changes them.
        factors: For each concept, its factors by layer name.
    """

    layers: tuple[FusedLayer, ...]
    factors: tuple[Mapping[str, LowRank], ...]

    def of_stage(self, stage: Stage) -> list[FusedLayer]:
        """Return the layers that a stage fuses."""
        return [layer for layer in self.layers if layer.stage == stage]

    def shared(self) -> int:
        """Return how many layers more than one concept changes."""
        return sum(
            sum(layer.name in factors for factors in self.factors) > 1 for layer in self.layers
        )


def layout_of(
    model: ModelPatcher, clip: comfy.sd.CLIP, family: Family, changes: Sequence[Changes]
) -> Layout:
    """Return what several LoRAs change, brought into line: split and fused layers are one.

    Slices of a layer that overlap, such as one file's q, k, v and another's qkv, become one layer;
    those that don't stay apart. A layer that no file could name becomes the whole weight.
    """
    names = _file_names(model, clip, family)
    spans: dict[str, list[tuple[int, int]]] = {}
    for place in (place for one in changes for place in one.factors):
        spans.setdefault(place.key, []).append((place.start, place.start + place.size))
    layers: list[FusedLayer] = []
    factors: list[dict[str, LowRank]] = [{} for _ in changes]
    for key, found in spans.items():
        module = watched(model, clip, key.removesuffix(".weight"))
        shape = tuple(module.weight.shape)
        merged = _merged(found)
        if any(Place(key, start, end - start) not in names for start, end in merged):
            merged = [(0, shape[0])]
        for start, end in merged:
            layer = _layer(Place(key, start, end - start), shape, names, family)
            layers.append(layer)
            for own, one in zip(factors, changes, strict=True):
                inside = {p: f for p, f in one.factors.items() if _holds(layer.place, p)}
                if inside:
                    own[layer.name] = _joined(layer, inside)
    return Layout(tuple(layers), tuple(factors))


def watched(model: ModelPatcher, clip: comfy.sd.CLIP, path: str) -> nn.Module:
    """Return the module of a path that ``FusedLayer.site`` names."""
    root = model.model if path.startswith(NATIVE_PREFIX) else clip.cond_stage_model
    return comfy.utils.get_attr(root, path)


def context_index(model: ModelPatcher) -> dict[str, int]:
    """Return which context each cross-attention of a UNet reads, by the path of its module."""
    found: dict[str, int] = {}
    count = 0
    for path, module in model.model.named_modules():
        if isinstance(module, SpatialTransformer):
            found[f"{path}."] = count
            count += 1
    return found


def _file_names(model: ModelPatcher, clip: comfy.sd.CLIP, family: Family) -> dict[Place, str]:
    """Return a name in LoRA files for every place that has one, those that most programs read."""
    names: dict[Place, str] = {}
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
            turned = not isinstance(target, str) and len(target) > 2
            # The maps name layers too that this size of the network lacks.
            if key not in weights or turned or (offset and offset[0] != 0):
                continue
            place = Place(key, *((0, len(weights[key])) if offset is None else offset[1:]))
            # ComfyUI lists a UNet layer's native name first, its usual one later.
            if place not in names or name.startswith(preferred):
                names[place] = name
    return names


def _layer(
    place: Place, weight: tuple[int, ...], names: Mapping[Place, str], family: Family
) -> FusedLayer:
    path = place.key.removesuffix(".weight")
    stage: Stage = "spatial"
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
    return FusedLayer(names[place], place, (place.size, *weight[1:]), stage, site)


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans without overlaps: those that overlap become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(set(spans)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _holds(outer: Place, inner: Place) -> bool:
    return (
        outer.key == inner.key
        and outer.start <= inner.start
        and inner.start + inner.size <= outer.start + outer.size
    )


def _joined(layer: FusedLayer, parts: Mapping[Place, LowRank]) -> LowRank:
    """Return factors of several slices as factors of the layer that holds them."""
    if set(parts) == {layer.place}:
        return parts[layer.place]
    ups, downs = [], []
    for place, factors in parts.items():
        up = torch.zeros(layer.shape[0], factors.rank)
        start = place.start - layer.place.start
        up[start : start + place.size] = factors.up.flatten(1).float() * factors.scale
        ups.append(up)
        downs.append(factors.down.float())
    up = torch.cat(ups, 1)
    return LowRank(torch.cat(downs), up.view(*up.shape, *(1,) * (len(layer.shape) - 2)))
