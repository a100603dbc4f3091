"""Find the layers of a model to train, by their names in LoRA files."""

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
class TrainableLayer(Layer):
    """A layer of a model that can be trained.

    Args:
        targets: Entries of ``training.settings.TARGETS`` that include the layer.
    """

    targets: frozenset[str] = frozenset()


def trainable_layers(model: ModelPatcher, family: Family) -> dict[str, TrainableLayer]:
    """Return the layers that can be trained, by their names in LoRA files.

    Args:
        model: Base model.
        family: Family of the base.
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
            found[names[path]] = TrainableLayer(path, shape, targets=targets)
        if ATTENTION not in targets and matches(patterns.fused_attention, path):
            slice_shape = (3 * shape[1], shape[1])
            found[names[path] + patterns.fused_suffix] = TrainableLayer(
                path, slice_shape, start=0, targets=frozenset({ATTENTION})
            )
    return found


def _targets_of(path: str, patterns: TargetLayers) -> frozenset[str]:
    """Return the entries of ``training.settings.TARGETS`` that include a layer."""
    attention = matches(patterns.attention, path)
    feed_forward = matches(patterns.feed_forward, path)
    members = (attention, attention or feed_forward, matches(patterns.blocks, path))
    return frozenset(name for name, member in zip(TARGETS, members, strict=True) if member)


def target_layers(
    trainable: Mapping[str, TrainableLayer], targets: str, target_pattern: str = ""
) -> dict[str, TrainableLayer]:
    """Return the layers to train.

    Args:
        trainable: All layers that can be trained.
        targets: One of ``training.settings.TARGETS``. ``attention`` means q, k, v and the output
            projection; in Flux's single blocks it means the q, k, v slice of ``linear1``, and
            ``linear2``.
        target_pattern: Glob patterns of module paths or file names, separated by spaces or commas,
            which replace ``targets``. A pattern with ``-`` in front excludes layers. Only linear
            layers of the blocks can be selected.

    Raises:
        ValueError: The pattern matches no layer.
    """
    chosen = ALL_LINEAR if target_pattern.strip() else targets
    found = {name: layer for name, layer in trainable.items() if chosen in layer.targets}
    return _matching(found, target_pattern) if target_pattern.strip() else found


def sites_on(
    layers: Mapping[str, Layer], model: ModelPatcher, clip: CLIP | None = None
) -> dict[str, Site]:
    """Return the layers' sites in a loaded model and its text encoder."""
    network = model.model.diffusion_model
    text = None if clip is None else clip.cond_stage_model
    return {
        name: layer.on(text if text is not None and changes_text_encoder(name) else network)
        for name, layer in layers.items()
    }


def training_sites(model: ModelPatcher, targets: str, target_pattern: str = "") -> dict[str, Site]:
    """Return the sites to train in a model, as ``target_layers`` chooses them."""
    trainable = trainable_layers(model, identify(model))
    return sites_on(target_layers(trainable, targets, target_pattern), model)


def text_key_value_layers(sites: Iterable[str], family: Family) -> list[str]:
    """Return the names of layers that make keys and values of the text only."""
    return [name for name in sites if matches(family.layers.text_keys_values, name)]


def _matching(layers: Mapping[str, TrainableLayer], pattern: str) -> dict[str, TrainableLayer]:
    """Return the layers whose module path or file name matches a pattern."""
    globs = pattern.replace(",", " ").split()
    included = [glob for glob in globs if not glob.startswith("-")] or ["*"]
    excluded = [glob[1:] for glob in globs if glob.startswith("-")]

    def matches_any(name: str, layer: Layer, patterns: list[str]) -> bool:
        return any(fnmatchcase(text, glob) for glob in patterns for text in (name, layer.path))

    found = {
        name: layer
        for name, layer in layers.items()
        if matches_any(name, layer, included) and not matches_any(name, layer, excluded)
    }
    if not found:
        example = next((layer.path for layer in layers.values()), "none")
        raise ValueError(
            f"target_pattern must match a layer such as {example}, got {pattern!r} without a "
            "match; * stands for any characters"
        )
    return found


def _file_names(model: ModelPatcher, family: Family) -> dict[str, str]:
    """Return the layer name in LoRA files by module path."""
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
