"""The layers of a model that a training changes, by the names that LoRA files give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...lora_ops.keys import NATIVE_PREFIX, changes_text_encoder
from ...training.families import Family
from ...training.gates import Layer, Site
from ...training.settings import TARGETS
from ..bridge.families import identify
from ..lora.layers import is_linear

ATTENTION, _, ALL_LINEAR = TARGETS


@dataclass(frozen=True)
class _Layers:
    """Patterns of a family's module paths below ``diffusion_model``."""

    attention: str
    feed_forward: str
    blocks: str

    def targets_of(self, path: str) -> frozenset[str]:
        """Return those of ``training.settings.TARGETS`` that the layer of a path is one of."""
        attention = bool(re.search(self.attention, path))
        feed_forward = bool(re.search(self.feed_forward, path))
        members = (attention, attention or feed_forward, bool(re.search(self.blocks, path)))
        return frozenset(name for name, member in zip(TARGETS, members, strict=True) if member)


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


@dataclass(frozen=True)
class OfferedLayer(Layer):
    """A layer of a model that can be trained.

    Args:
        targets: Those of ``training.settings.TARGETS`` that it is one of.
    """

    targets: frozenset[str] = frozenset()


def offered_layers(model: ModelPatcher, family: Family) -> dict[str, OfferedLayer]:
    """Return the layers that can be trained by the name they get in a LoRA file.

    Args:
        model: The base.
        family: Its family.
    """
    patterns = _LAYERS[family.name]
    names = _file_names(model, family)
    found = {}
    for path, module in model.model.diffusion_model.named_modules():
        if path not in names or not is_linear(module):
            continue
        shape = tuple(module.weight.shape)
        targets = patterns.targets_of(path)
        if targets:
            found[names[path]] = OfferedLayer(path, shape, targets=targets)
        if ATTENTION not in targets and _FUSED.match(path):
            slice_shape = (3 * shape[1], shape[1])
            found[names[path] + _FUSED_SUFFIX] = OfferedLayer(
                path, slice_shape, start=0, targets=frozenset({ATTENTION})
            )
    return found


def target_layers(
    offered: Mapping[str, OfferedLayer], targets: str, target_pattern: str = ""
) -> dict[str, OfferedLayer]:
    """Return the layers to train.

    Args:
        offered: All that can be trained.
        targets: One of ``training.settings.TARGETS``. ``attention`` means q, k, v and the output
            projection; in Flux's single blocks the q, k, v slice of ``linear1`` and ``linear2``.
        target_pattern: Layers by name instead: globs over module paths and file names, parted by
            spaces or commas; one with ``-`` in front leaves layers out. Only the blocks' linear
            layers are offered.

    Raises:
        ValueError: The pattern matches no layer.
    """
    chosen = ALL_LINEAR if target_pattern.strip() else targets
    found = {name: layer for name, layer in offered.items() if chosen in layer.targets}
    return _matching(found, target_pattern) if target_pattern.strip() else found


def sites_on(
    layers: Mapping[str, Layer], model: ModelPatcher, clip: CLIP | None = None
) -> dict[str, Site]:
    """Return layers as they lie in a loaded model and its text encoder."""
    network = model.model.diffusion_model
    text = None if clip is None else clip.cond_stage_model
    return {
        name: layer.on(text if text is not None and changes_text_encoder(name) else network)
        for name, layer in layers.items()
    }


def training_sites(model: ModelPatcher, targets: str, target_pattern: str = "") -> dict[str, Site]:
    """Return the sites to train of a model that stands alone, as ``target_layers`` chooses them."""
    offered = offered_layers(model, identify(model))
    return sites_on(target_layers(offered, targets, target_pattern), model)


def text_readers(sites: Iterable[str]) -> list[str]:
    """Return those layers that make keys and values of the text alone, as LoRA files name them."""
    return [name for name in sites if _READS_TEXT.search(name)]


def _matching(layers: Mapping[str, OfferedLayer], pattern: str) -> dict[str, OfferedLayer]:
    """Return the layers whose module path or file name a pattern names."""
    globs = pattern.replace(",", " ").split()
    wanted = [glob for glob in globs if not glob.startswith("-")] or ["*"]
    unwanted = [glob[1:] for glob in globs if glob.startswith("-")]

    def named(name: str, layer: Layer, patterns: list[str]) -> bool:
        return any(fnmatchcase(text, glob) for glob in patterns for text in (name, layer.path))

    found = {
        name: layer
        for name, layer in layers.items()
        if named(name, layer, wanted) and not named(name, layer, unwanted)
    }
    if not found:
        example = next((layer.path for layer in layers.values()), "none")
        raise ValueError(
            f"target_pattern must match a layer such as {example}, got {pattern!r} without a "
            "match; * stands for any characters"
        )
    return found


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
