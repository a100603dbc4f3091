"""The layers of a model that a training changes, by the names that LoRA files give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

import comfy.utils
from comfy.model_patcher import ModelPatcher

from ...lora_ops.keys import NATIVE_PREFIX
from ...training import TrainingSettings
from ...training.families import Family
from ...training.families.family import matches
from ...training.gates import Site
from ..bridge.families import identify
from ..lora.layers import is_linear
from ..text.encoder_layers import TextTraining, text_sites


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
    layers = family.layers
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
        elif targets == "attention" and matches(layers.fused_attention, path):
            name = names[path] + layers.fused_suffix
            sites[name] = Site(module, (3 * shape[1], shape[1]), start=0)
    return _matching(sites, model, pattern) if pattern.strip() else sites


def text_readers(sites: Iterable[str], family: Family) -> list[str]:
    """Return those layers that make keys and values of the text alone, as LoRA files name them."""
    return [name for name in sites if matches(family.layers.text_keys_values, name)]


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
