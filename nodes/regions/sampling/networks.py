"""Identify the networks that support regions."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ....training.families import FAMILIES
from ....training.families.family import AttentionLayout, RegionLayers
from ...bridge.families import class_names, is_exactly, layers_by_path, network_family


def regional_network(model: ModelPatcher) -> tuple[AttentionLayout, RegionLayers]:
    """Return the attention layout of a model's network, and the patterns of its layers.

    Args:
        model: Any MODEL. Subclasses of the supported classes are refused, because they read text in
            more layers or position it by its length.

    Raises:
        ValueError: The model does not support regions.
    """
    family = network_family(model)
    if family is not None and family.regions is not None:
        readers = layers_by_path(model.model.diffusion_model, family.regions.cross_attention)
        if all(is_exactly(layer, family.regions.cross_attention_class) for layer in readers):
            return family.attention_layout, family.regions
    *names, last = (
        f"{one.name} {one.regions.variant}".strip() for one in FAMILIES.values() if one.regions
    )
    model_class, network_class = class_names(model)
    raise ValueError(
        f"regions must be on a model of {', '.join(names)} or {last}, got {model_class} with "
        f"{network_class}; load one of these"
    )
