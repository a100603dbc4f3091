"""The layers of a model that a LoRA file names, and the LoRA's factors there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...lora_ops import LowRank
from ...lora_ops.keys import changes_text_encoder, parts_by_layer
from ...training.files.lora_file import require_named_once
from ...training.gates import Site
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


def file_sites(
    model: ModelPatcher, lora: Mapping[str, Tensor]
) -> tuple[dict[str, Site], FixedFactors]:
    """Return the layers that a LoRA changes, and its factors there.

    Names, alpha, slices of fused layers and convolutions are read as ComfyUI's own loader reads
    them. Site names are the model's, so the sites of several LoRAs can be merged.

    Raises:
        ValueError: No key matches the model, a shape doesn't, or a layer is not low-rank.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    require_named_once(parts_by_layer(lora), names)
    patches = comfy.lora.load_lora(dict(lora), names, log_missing=False)
    if not patches:
        example = next(iter(_denoiser_layers(lora)), None)
        what = f"such as {example[:80]}" if example else "no key for the image model"
        raise ValueError(
            f"the LoRA must be made for this architecture, {identify(model).name}, got a LoRA "
            f"without any matching key ({what}); choose a LoRA made for it"
        )
    sites, layers = {}, {}
    for target, patch in patches.items():
        key, offset, function = (
            (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        )
        _require_low_rank(key, patch)
        site = _site(model, key, offset)
        name = key if site.start is None else f"{key}[{site.start}:{site.start + site.shape[0]}]"
        layers[name] = patch_factors(key, patch, site, function)
        sites[name] = site
    return sites, FixedFactors(layers)


def unmatched_keys(model: ModelPatcher, lora: Mapping[str, Tensor]) -> list[str]:
    """Return the layers of the image model's part of a LoRA that this model has no layer for."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    return [layer for layer in _denoiser_layers(lora) if layer not in names]


def _denoiser_layers(lora: Mapping[str, Tensor]) -> list[str]:
    return sorted(layer for layer in parts_by_layer(lora) if not changes_text_encoder(layer))


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


def _site(model: ModelPatcher, key: str, offset: tuple[int, int, int] | None) -> Site:
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
        return Site(module, shape)
    return Site(module, (offset[2], *shape[1:]), start=offset[1])


def patch_factors(key: str, patch: LoRAAdapter, site: Site, function: object) -> LowRank:
    """Return the factors of a low-rank patch of ComfyUI's, in the layout of the layer's weight.

    Args:
        key: Of the weight.
        patch: As ComfyUI's loader made it.
        site: The layer, or the slice of it that is changed.
        function: What ComfyUI applies to the change's rows, or None.

    Raises:
        ValueError: The factors don't fit the weight.
    """
    up, down, alpha, mid = patch.weights[:4]
    if mid is not None:  # Tucker form: the kernel sits between two 1x1 layers
        down = torch.einsum("jkhw,ki->jihw", mid, down.flatten(1))
    rank = down.shape[0]
    fan_in = math.prod(site.shape[1:])
    if down.numel() != rank * fan_in or up.numel() != rank * site.shape[0]:
        raise ValueError(
            f"the LoRA must fit the model's layers, got factors {tuple(up.shape)} and "
            f"{tuple(down.shape)} for {key} of shape {site.shape}; choose a LoRA "
            "made for it"
        )
    if function is not None:
        up = function(up)
    up = up.reshape(site.shape[0], rank, *([1] * (len(site.shape) - 2)))
    return LowRank(down.reshape(rank, *site.shape[1:]), up, alpha)
