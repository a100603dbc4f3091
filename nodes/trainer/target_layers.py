"""The layers of a model that a training changes, by the names that LoRA files give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...lora_ops.keys import NATIVE_PREFIX
from ...training import TrainingSettings
from ...training.families import Family
from ...training.gates import Site
from ..bridge.families import identify
from ..lora.layers import is_linear
from ..text.encoder_layers import TextTraining, text_sites


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
        if path not in names or not is_linear(module):
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


def trained_sites(
    model: ModelPatcher,
    settings: TrainingSettings,
    text: TextTraining | None = None,
    denoiser_rate: float = 1.0,
) -> dict[str, Site]:
    """Return the layers that are trained: the denoiser's, then the text encoder's.

    Args:
        model: The base.
        settings: Which of the denoiser's.
        text: The text encoder, where it takes part.
        denoiser_rate: What multiplies the learning rate of the denoiser's layers.
    """
    sites = training_sites(model, settings.targets, settings.target_pattern)
    return {
        **{name: replace(site, rate=denoiser_rate) for name, site in sites.items()},
        **(text_sites(text.clip, text.rate) if text and text.rate else {}),
    }
