"""Identify the family of a MODEL by the names of ComfyUI's classes."""

from __future__ import annotations

from typing import Any

from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS
from torch import nn

from ...training.families import FAMILIES, Family
from ...training.families.family import matches

_PREDICTIONS = {
    ModelType.EPS: "epsilon",
    ModelType.V_PREDICTION: "v",
    ModelType.FLOW: "flow",
    ModelType.FLUX: "flow",
}


def identify(model: ModelPatcher) -> Family:
    """Return the family of a MODEL.

    Raises:
        ValueError: The model's class is not supported, or it is an inpainting or edit model.
    """
    base = model.model
    config: Any = getattr(base, "model_config", None)  # a class of comfy.supported_models
    family = _family_of_config(_full_name(config))
    if family is None:
        raise ValueError(
            f"the model must be one of {', '.join(FAMILIES)}, got {type(base).__name__} "
            f"({type(config).__name__}); load a model of a supported family"
        )
    if not family.packs_latents:
        channels = config.unet_config.get("in_channels", config.unet_config.get("in_dim"))
        expected = config.latent_format.latent_channels
        if channels not in (None, expected) or base.concat_keys:
            raise ValueError(
                "inpainting and edit models are not supported, got a "
                f"{family.name} model with {channels} input channels where {expected} are usual; "
                "load the family's text-to-image model"
            )
    return family


def _family_of_config(name: str) -> Family | None:
    for family in FAMILIES.values():
        if name in {f"comfy.supported_models.{config}" for config in family.classes.configs}:
            return family
    return None


def known_family(model: ModelPatcher) -> Family | None:
    """Return the family of a MODEL, or None if the pack does not support it."""
    try:
        return identify(model)
    except ValueError:  # LoRAs can be applied to more models than the pack can train
        return None


def base_name(model: ModelPatcher, family: Family | None) -> str:
    """Return the name of a MODEL in messages: its family, or else ComfyUI's class."""
    return class_names(model)[0] if family is None else family.name


def class_names(model: ModelPatcher) -> tuple[str, str]:
    """Return the class names of a MODEL and of its network, without their modules."""
    network = getattr(model.model, "diffusion_model", model.model)
    return type(model.model).__name__, type(network).__name__


def network_family(model: ModelPatcher) -> Family | None:
    """Return a family whose model and network classes equal those of a MODEL; None without one.

    Derived classes do not match, because their networks differ. Inpainting and edit models match
    their family. SD1.5 and SD2 share their classes and all properties of their networks, so the
    first of them is returned for both.
    """
    network = model.model.diffusion_model
    for family in FAMILIES.values():
        classes = family.classes
        if _full_name(model.model) == f"comfy.model_base.{classes.model}" and is_exactly(
            network, classes.network
        ):
            return family
    return None


def network_blocks(network: nn.Module, family: Family) -> list[nn.Module]:
    """Return the blocks of a network that gradient checkpointing recomputes one at a time."""
    blocks = family.blocks
    deeper = [module for module in network.modules() if is_a(module, blocks.classes)]
    return [*(block for name in blocks.lists for block in getattr(network, name)), *deeper]


def layers_by_path(network: nn.Module, pattern: str) -> list[nn.Module]:
    """Return the modules of a network whose path matches a family's pattern, in order."""
    return [module for path, module in network.named_modules() if matches(pattern, path)]


def is_exactly(module: nn.Module, name: str) -> bool:
    """Return whether a module's class is ``comfy.ldm.<name>`` itself and not a derived class."""
    return _full_name(module) == f"comfy.ldm.{name}"


def is_a(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Return whether a module is an instance of one of the classes ``comfy.ldm.<name>``."""
    return any(
        f"{kind.__module__}.{kind.__qualname__}" == f"comfy.ldm.{name}"
        for kind in type(module).__mro__
        for name in names
    )


def prediction_type(model: ModelPatcher) -> str:
    """Return a MODEL's prediction type for metadata: ``epsilon``, ``v``, ``flow``, or empty."""
    return _PREDICTIONS.get(model.model.model_type, "")


def _full_name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def identify_for_training(model: ModelPatcher) -> Family:
    """Return the family of a MODEL that can be differentiated.

    Raises:
        ValueError: The family is not supported, or the base is a GGUF, Nunchaku or otherwise
            quantised model without a backward pass.
    """
    family = identify(model)
    kind = _undifferentiable_kind(model)
    if kind is not None:
        raise ValueError(
            f"training needs a base in fp32, bf16, fp16 or fp8, got {kind}; "
            "load the same model's ordinary file for training, and use the LoRA on any of them"
        )
    return family


def _undifferentiable_kind(model: ModelPatcher) -> str | None:
    """Return a description of a base that can't be differentiated; None for other bases."""
    network = model.model.diffusion_model
    if (
        "nunchaku" in type(network).__module__.lower()
        or "nunchaku" in type(network).__name__.lower()
    ):
        return f"a Nunchaku base ({type(network).__name__})"
    if "gguf" in type(model).__name__.lower():
        return f"a GGUF base ({type(model).__name__})"
    for module in network.modules():
        if "ggml" in type(getattr(module, "weight", None)).__name__.lower():
            return f"a GGUF base ({type(module.weight).__name__})"
        quantised = getattr(module, "quant_format", None)
        # ComfyUI has a backward only for formats whose kernels also quantise the layer's input.
        if quantised is not None and not QUANT_ALGOS[quantised].get("quantize_input", True):
            return f"a base quantised as {quantised}"
    if model.model.model_config.optimizations.get("fp8"):
        return "a base in fp8_e4m3fn_fast"
    if not type(network).__module__.startswith("comfy."):
        return f"a base with its own network class ({type(network).__name__})"
    return None
