"""The layers of a model that a training changes, by the names that LoRA files give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...lora_ops.keys import NATIVE_PREFIX, changes_text_encoder
from ...training.families import Family
from ...training.families.family import TargetLayers, matches
from ...training.gates import Layer, Site
from ...training.settings import TARGETS
from ..bridge.families import identify
from ..lora.layers import is_linear

ATTENTION, _, ALL_LINEAR = TARGETS


@dataclass(frozen=True)
class OfferedLayer(Layer):
    """A layer of a model that can be trained.

    Args:
        targets: Those of ``training.settings.TARGETS`` to which it belongs.
    """

    targets: frozenset[str] = frozenset()


def offered_layers(model: ModelPatcher, family: Family) -> dict[str, OfferedLayer]:
    """Return the layers that can be trained by the name they get in a LoRA file.

    Args:
        model: The base.
        family: Its family.
    """
    patterns = family.layers
    names = _file_names(model, family)
    found = {}
    for path, module in model.model.diffusion_model.named_modules():
        if path not in names or not is_linear(module):
            continue
        shape = tuple(module.weight.shape)
        targets = _targets_of(path, patterns)
        if targets:
            found[names[path]] = OfferedLayer(path, shape, targets=targets)
        if ATTENTION not in targets and matches(patterns.fused_attention, path):
            slice_shape = (3 * shape[1], shape[1])
            found[names[path] + patterns.fused_suffix] = OfferedLayer(
                path, slice_shape, start=0, targets=frozenset({ATTENTION})
            )
    return found


def _targets_of(path: str, patterns: TargetLayers) -> frozenset[str]:
    """Return those of ``training.settings.TARGETS`` to which the layer of a path belongs."""
    attention = matches(patterns.attention, path)
    feed_forward = matches(patterns.feed_forward, path)
    members = (attention, attention or feed_forward, matches(patterns.blocks, path))
    return frozenset(name for name, member in zip(TARGETS, members, strict=True) if member)


def target_layers(
    offered: Mapping[str, OfferedLayer], targets: str, target_pattern: str = ""
) -> dict[str, OfferedLayer]:
    """Return the layers to train.

    Args:
        offered: All layers that can be trained.
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


def text_readers(sites: Iterable[str], family: Family) -> list[str]:
    """Return those layers that make keys and values of the text alone, as LoRA files name them."""
    return [name for name in sites if matches(family.layers.text_keys_values, name)]


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
