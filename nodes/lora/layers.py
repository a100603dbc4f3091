"""The layers of a model that a LoRA file names, and the LoRA's factors there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...lora_ops import LowRank
from ...lora_ops.keys import changes_text_encoder, parts_by_layer
from ...training.files.lora_file import require_named_once
from ...training.gates import Layer, Site
from ..bridge.families import identify


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, ComfyUI's own kinds of it included."""
    return hasattr(module, "in_features") and module.weight.ndim == 2


class FixedFactors:
    """An adapter with the factors of a finished LoRA.

    Factors follow the device and dtype of the layer's input and are kept there, so an instance
    lives for one sampling run.

    Args:
        layers: Factors by site name, on the CPU.
    """

    def __init__(self, layers: Mapping[str, LowRank]):
        self.layers = layers
        self._placed: dict[tuple[str, torch.device, torch.dtype], LowRank] = {}

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank | None:
        """Return the factors at ``site`` beside ``like``, ``None`` off the LoRA's sites."""
        layer = self.layers.get(site)
        if layer is None:
            return None
        place = (site, like.device, like.dtype)
        if place not in self._placed:
            down, up = (factor.to(like.device, like.dtype) for factor in (layer.down, layer.up))
            self._placed[place] = LowRank(down, up, layer.alpha)
        return self._placed[place]


@dataclass(frozen=True, eq=False)
class LoraLayers:
    """What a LoRA changes of a model, worked out of its file once.

    Args:
        layers: The changed layers by the model's own names, so that several LoRAs can be merged.
        factors: The factors at each of them.
        unmatched: Layers of the file's image model part that the model doesn't have.
    """

    layers: Mapping[str, Layer]
    factors: Mapping[str, LowRank]
    unmatched: Sequence[str] = ()

    def on(self, model: ModelPatcher) -> tuple[dict[str, Site], FixedFactors]:
        """Return the layers as they lie in a model, and an adapter for one sampling run."""
        sites = {name: layer.on(model.model) for name, layer in self.layers.items()}
        return sites, FixedFactors(self.factors)


def lora_layers(model: ModelPatcher, lora: Mapping[str, Tensor]) -> LoraLayers:
    """Return what a LoRA changes of a model.

    Names, alpha, slices of fused layers and convolutions are read as ComfyUI's own loader reads
    them.

    Raises:
        ValueError: No key matches the model, a shape doesn't, or a layer is not low-rank.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    file_layers = parts_by_layer(lora)
    require_named_once(file_layers, names)
    patches = comfy.lora.load_lora(dict(lora), names, log_missing=False)
    own = sorted(layer for layer in file_layers if not changes_text_encoder(layer))
    if not patches:
        what = f"such as {own[0][:80]}" if own else "no key for the image model"
        raise ValueError(
            f"the LoRA must be made for this architecture, {identify(model).name}, got a LoRA "
            f"without any matching key ({what}); choose a LoRA made for it"
        )
    layers, factors = {}, {}
    for target, patch in patches.items():
        key, offset, function = (
            (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        )
        _require_low_rank(key, patch)
        layer = _layer(model, key, offset)
        name = (
            key if layer.start is None else f"{key}[{layer.start}:{layer.start + layer.shape[0]}]"
        )
        factors[name] = patch_factors(key, patch, layer.shape, function)
        layers[name] = layer
    return LoraLayers(layers, factors, [layer for layer in own if layer not in names])


def _require_low_rank(key: str, patch: object) -> None:
    if not isinstance(patch, LoRAAdapter):
        kind = getattr(patch, "name", None) or patch[0]
    elif patch.weights[4] is not None:
        kind = "DoRA"
    elif patch.weights[5] is not None:
        kind = "reshaped (a control LoRA)"
    else:
        return
    raise ValueError(
        "a LoRA that is switched on for single rows must hold ordinary low-rank layers, got a "
        f"layer of kind {kind} ({key}); use Apply LoRA (Pastiche) with it instead"
    )


def _layer(model: ModelPatcher, key: str, offset: tuple[int, int, int] | None) -> Layer:
    path, _, parameter = key.rpartition(".")
    module = comfy.utils.get_attr(model.model, path)
    kind = type(module).__name__
    if parameter != "weight" or not (is_linear(module) or isinstance(module, nn.Conv2d)):
        raise ValueError(
            "a LoRA that is switched on for single rows must change linear layers and 2-D "
            f"convolutions only, got {key} ({kind}); use Apply LoRA (Pastiche) with it instead"
        )
    if getattr(module, "groups", 1) != 1 or (offset is not None and offset[0] != 0):
        raise ValueError(
            "a LoRA that is switched on for single rows must change whole layers or slices of "
            f"their output, got {key}; use Apply LoRA (Pastiche) with it instead"
        )
    shape = tuple(module.weight.shape)
    if offset is None:
        return Layer(path, shape)
    return Layer(path, (offset[2], *shape[1:]), start=offset[1])


def patch_factors(
    key: str, patch: LoRAAdapter, shape: tuple[int, ...], function: object
) -> LowRank:
    """Return the factors of a low-rank patch of ComfyUI's, in the layout of the layer's weight.

    Args:
        key: Of the weight.
        patch: As ComfyUI's loader made it.
        shape: Shape of the layer's weight, or of the slice of it that is changed.
        function: What ComfyUI applies to the change's rows, or None.

    Raises:
        ValueError: The factors don't fit the weight.
    """
    up, down, alpha, mid = patch.weights[:4]
    if mid is not None:  # Tucker form: the kernel sits between two 1x1 layers
        down = torch.einsum("jkhw,ki->jihw", mid, down.flatten(1))
    rank = down.shape[0]
    fan_in = math.prod(shape[1:])
    if down.numel() != rank * fan_in or up.numel() != rank * shape[0]:
        raise ValueError(
            f"the LoRA must fit the model's layers, got factors {tuple(up.shape)} and "
            f"{tuple(down.shape)} for {key} of shape {shape}; choose a LoRA "
            "made for it"
        )
    if function is not None:
        up = function(up)
    up = up.reshape(shape[0], rank, *([1] * (len(shape) - 2)))
    return LowRank(down.reshape(rank, *shape[1:]), up, alpha)
