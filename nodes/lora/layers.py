"""Where adapters act: a model's target layers for training, and the layers a LoRA file names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...lora_ops import LowRank
from ...lora_ops.keys import NATIVE_PREFIX, changes_text_encoder, parts_by_layer
from ...training.families import Family
from ...training.gates import Site
from ...training.lora_file import require_named_once
from ..bridge.families import identify


@dataclass(frozen=True)
class _Layers:
    """Patterns of a family's module paths below ``diffusion_model``."""

    attention: str
    feed_forward: str
    blocks: str


_UNET = _Layers(
    attention=r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
    feed_forward=r"\.ff\.net\.(0\.proj|2)$",
    blocks=r"\.(transformer_blocks\.\d+\..+|proj_in|proj_out)$",
)
_FLUX = _Layers(
    attention=r"^double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)$|^single_blocks\.\d+\.linear2$",
    feed_forward=r"^double_blocks\.\d+\.(img|txt)_mlp\.\d+$|^single_blocks\.\d+\.linear1$",
    blocks=r"^(double|single)_blocks\.",
)
_LAYERS: dict[str, _Layers] = {
    "SD1.5": _UNET,
    "SD2": _UNET,
    "SDXL": _UNET,
    "SD3": _Layers(
        attention=r"^joint_blocks\.\d+\.(x|context)_block\.attn2?\.(qkv|proj)$",
        feed_forward=r"^joint_blocks\.\d+\.(x|context)_block\.mlp\.fc[12]$",
        blocks=r"^joint_blocks\.",
    ),
    "Flux": _FLUX,
    "Flux.2": _FLUX,
    "Wan 2.1": _Layers(
        attention=r"^blocks\.\d+\.(self|cross)_attn\.[qkvo]$",
        feed_forward=r"^blocks\.\d+\.ffn\.[02]$",
        blocks=r"^blocks\.",
    ),
    "Qwen-Image": _Layers(
        attention=r"^transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)$",
        feed_forward=r"^transformer_blocks\.\d+\.(img|txt)_mlp\.net\.(0\.proj|2)$",
        blocks=r"^transformer_blocks\.",
    ),
    "Z-Image": _Layers(
        attention=r"^layers\.\d+\.attention\.(qkv|out)$",
        feed_forward=r"^layers\.\d+\.feed_forward\.w[123]$",
        blocks=r"^layers\.",
    ),
}
_READS_TEXT = re.compile(r"_attn2_to_[kv]$|\.cross_attn\.[kv]$")
# Core's loader reads this suffix as the q, k and v rows of a fused layer.
_FUSED = re.compile(r"^single_blocks\.\d+\.linear1$")
_FUSED_SUFFIX = "_qkv"


def training_sites(model: ModelPatcher, targets: str, pattern: str = "") -> dict[str, Site]:
    """Return the layers to train by the name they get in a LoRA file.

    Args:
        model: The base.
        targets: One of ``training.config.TARGETS``. ``attention`` means q, k, v and the output
            projection; in Flux's single blocks the q, k, v slice of ``linear1`` and ``linear2``.
        pattern: Layers by name instead: globs over module paths and file names, parted by spaces
            or commas; one with ``-`` in front leaves layers out. Only the blocks' linear layers
            are offered.

    Raises:
        ValueError: The model's family is not supported, or the pattern matches no layer.
    """
    family = identify(model)
    layers = _LAYERS[family.name]
    patterns = {
        "attention": (layers.attention,),
        "attention and feed-forward": (layers.attention, layers.feed_forward),
        "all linear": (layers.blocks,),
    }["all linear" if pattern.strip() else targets]
    names = _file_names(model, family)
    sites = {}
    for path, module in model.model.diffusion_model.named_modules():
        if path not in names or not _is_linear(module):
            continue
        shape = tuple(module.weight.shape)
        if any(re.search(pattern, path) for pattern in patterns):
            sites[names[path]] = Site(module, shape)
        elif targets == "attention" and _FUSED.match(path):
            sites[names[path] + _FUSED_SUFFIX] = Site(module, (3 * shape[1], shape[1]), start=0)
    return _matching(sites, model, pattern) if pattern.strip() else sites


def text_readers(sites: Iterable[str]) -> list[str]:
    """Return those layers that make keys and values of the text alone, as LoRA files name them."""
    return [name for name in sites if _READS_TEXT.search(name)]


def _matching(sites: dict[str, Site], model: ModelPatcher, pattern: str) -> dict[str, Site]:
    """Return the sites whose module path or file name a pattern names."""
    globs = pattern.replace(",", " ").split()
    wanted = [glob for glob in globs if not glob.startswith("-")] or ["*"]
    unwanted = [glob[1:] for glob in globs if glob.startswith("-")]
    paths = {module: path for path, module in model.model.diffusion_model.named_modules()}

    def named(name: str, site: Site, patterns: list[str]) -> bool:
        return any(
            fnmatchcase(text, glob) for glob in patterns for text in (name, paths[site.module])
        )

    found = {
        name: site
        for name, site in sites.items()
        if named(name, site, wanted) and not named(name, site, unwanted)
    }
    if not found:
        example = next(iter(paths[site.module] for site in sites.values()), "none")
        raise ValueError(
            f"target_pattern must match a layer such as {example}, got {pattern!r} without a "
            "match; * stands for any characters"
        )
    return found


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and module.weight.ndim == 2


def _file_names(model: ModelPatcher, family: Family) -> dict[str, str]:
    """Return the layer name in a LoRA file of every module path that has one."""
    if family.kohya_keys:
        to_native = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        return {
            native.removesuffix(".weight"): "lora_unet_"
            + diffusers.removesuffix(".weight").replace(".", "_")
            for diffusers, native in to_native.items()
            if diffusers.endswith(".weight")
        }
    network = model.model.diffusion_model
    return {path: NATIVE_PREFIX + path for path, _ in network.named_modules() if path}


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
    if parameter != "weight" or not (_is_linear(module) or isinstance(module, nn.Conv2d)):
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
