"""Read from a LoRA which layers of a model it changes, and its factors at these layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor, nn

from ...lora_ops import LowRank
from ...lora_ops.keys import changes_text_encoder, parts_by_layer
from ...training.files.lora_file import require_named_once
from ...training.gates import Layer, Site
from ..bridge.families import identify


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, including ComfyUI's own linear classes."""
    return hasattr(module, "in_features") and bool(module.weight.ndim == 2)


class FixedFactors:
    """An adapter with the factors of a finished LoRA.

    Factors are copied to the device and dtype of the layer's input and stay there, so an instance
    should be used for only one sampling run.

    Args:
        layers: Factors on the CPU, by site name.
    """

    def __init__(self, layers: Mapping[str, LowRank]):
        self.layers = layers
        self._placed: dict[tuple[str, torch.device, torch.dtype], LowRank] = {}

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank | None:
        """Return the factors at ``site`` on the device of ``like``; None at other sites."""
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
    """The layers of a model that a LoRA changes, with their factors.

    Args:
        layers: Changed layers by the model's own names, so that several LoRAs can be merged.
        factors: Factors of every layer, by the same names.
        unmatched: Layers of the file that the model does not have, without the text encoder's.
    """

    layers: Mapping[str, Layer]
    factors: Mapping[str, LowRank]
    unmatched: Sequence[str] = ()

    def on(self, model: ModelPatcher) -> tuple[dict[str, Site], FixedFactors]:
        """Return the layers' sites in a model, and an adapter for one sampling run."""
        sites = {name: layer.on(model.model) for name, layer in self.layers.items()}
        return sites, FixedFactors(self.factors)


def lora_layers(model: ModelPatcher, lora: Mapping[str, Tensor]) -> LoraLayers:
    """Return the layers of a model that a LoRA changes.

    Names, alpha, slices of fused layers and convolutions are interpreted as ComfyUI's own loader
    does it.

    Raises:
        ValueError: No key matches the model, a shape does not fit, or a layer is not low-rank.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    file_layers = parts_by_layer(lora)
    require_named_once(file_layers, names)
    patches: dict[str | tuple[Any, ...], WeightAdapterBase | tuple[Any, ...]]
    patches = comfy.lora.load_lora(dict(lora), names, log_missing=False)
    own = sorted(layer for layer in file_layers if not changes_text_encoder(layer))
    if not patches:
        what = f"such as {own[0][:80]}" if own else "no key for the image model"
        raise ValueError(
            f"the LoRA must be made for this architecture, {identify(model).name}, got a LoRA "
            f"without any matching key ({what}); choose a LoRA made for it"
        )
    layers: dict[str, Layer] = {}
    factors: dict[str, LowRank] = {}
    for target, patch in patches.items():
        key, offset, function = _target_parts(target)
        patch = _require_low_rank(key, patch)
        layer = _layer(model, key, offset)
        name = (
            key if layer.start is None else f"{key}[{layer.start}:{layer.start + layer.shape[0]}]"
        )
        factors[name] = patch_factors(key, patch, layer.shape, function)
        layers[name] = layer
    return LoraLayers(layers, factors, [layer for layer in own if layer not in names])


def _target_parts(
    target: str | tuple[Any, ...],
) -> tuple[str, tuple[int, int, int] | None, Callable[[Tensor], Tensor] | None]:
    """Return key, slice and row function of a target of ComfyUI's patches; both may be missing."""
    if isinstance(target, str):
        return target, None, None
    return target[0], target[1], target[2] if len(target) > 2 else None


def _require_low_rank(key: str, patch: WeightAdapterBase | tuple[Any, ...]) -> LoRAAdapter:
    """Return the patch, which must be an ordinary low-rank one.

    Raises:
        ValueError: The patch is of another kind.
    """
    if not isinstance(patch, LoRAAdapter):
        kind = patch.name if isinstance(patch, WeightAdapterBase) else patch[0]
    elif patch.weights[4] is not None:
        kind = "DoRA"
    elif patch.weights[5] is not None:
        kind = "reshaped (a control LoRA)"
    else:
        return patch
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
    key: str,
    patch: LoRAAdapter,
    shape: tuple[int, ...],
    function: Callable[[Tensor], Tensor] | None,
) -> LowRank:
    """Return the factors of ComfyUI's low-rank patch in the layout of the layer's weight.

    Args:
        key: Key of the weight.
        patch: Patch from ComfyUI's loader.
        shape: Shape of the layer's weight, or of the slice that is changed.
        function: Function that ComfyUI applies to the rows of the change, or None.

    Raises:
        ValueError: The factors do not fit the weight.
    """
    # ComfyUI declares a list of tensors; alpha is a number, and alpha and mid may be None.
    weights = cast("tuple[Tensor, Tensor, float | None, Tensor | None]", tuple(patch.weights[:4]))
    up, down, alpha, mid = weights
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
