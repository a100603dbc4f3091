"""The family of a MODEL, found by the names of ComfyUI's classes."""

from __future__ import annotations

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
        ValueError: Its class is not supported, or it is an inpainting or edit model.
    """
    base = model.model
    config = getattr(base, "model_config", None)
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
    """Return the family of a MODEL, None if it is of none that the pack trains."""
    try:
        return identify(model)
    except ValueError:  # LoRAs work on more models than the pack trains
        return None


def base_name(model: ModelPatcher, family: Family | None) -> str:
    """Return what messages call a MODEL: its family, or ComfyUI's class where it has none."""
    return class_names(model)[0] if family is None else family.name


def class_names(model: ModelPatcher) -> tuple[str, str]:
    """Return the names of ComfyUI's classes of a MODEL and of its network, without modules."""
    network = getattr(model.model, "diffusion_model", model.model)
    return type(model.model).__name__, type(network).__name__


def network_family(model: ModelPatcher) -> Family | None:
    """Return a family whose model and network classes a MODEL has; None if there is none.

    Its classes must be the very ones, not derived ones, whose networks differ. Inpainting and edit
    models have them too. SD1.5 and SD2 share their classes and all facts of their networks: for
    both, the first of them is returned.
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
    """Return the blocks of a family's network that checkpointing recomputes one at a time."""
    blocks = family.blocks
    deeper = [module for module in network.modules() if is_a(module, blocks.classes)]
    return [*(block for name in blocks.lists for block in getattr(network, name)), *deeper]


def layers_by_path(network: nn.Module, pattern: str) -> list[nn.Module]:
    """Return the modules of a network whose path a family's pattern matches, in order."""
    return [module for path, module in network.named_modules() if matches(pattern, path)]


def is_exactly(module: nn.Module, name: str) -> bool:
    """Return whether a module is of a class that is named below ``comfy.ldm``, not a derived one."""
    return _full_name(module) == f"comfy.ldm.{name}"


def is_a(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Return whether a module is of one of some classes named below ``comfy.ldm``, or derived."""
    return any(
        f"{kind.__module__}.{kind.__qualname__}" == f"comfy.ldm.{name}"
        for kind in type(module).__mro__
        for name in names
    )


def prediction_type(model: ModelPatcher) -> str:
    """Return what metadata call a MODEL's prediction: ``epsilon``, ``v``, ``flow`` or nothing."""
    return _PREDICTIONS.get(model.model.model_type, "")


def _full_name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def identify_for_training(model: ModelPatcher) -> Family:
    """Return the family of a MODEL that gradients can flow through.

    Raises:
        ValueError: As ``identify``, or the base is a GGUF, Nunchaku or other quantised one
            without a backward.
    """
    family = identify(model)
    kind = _foreign_kind(model)
    if kind is not None:
        raise ValueError(
            f"training needs a base in fp32, bf16, fp16 or fp8, got {kind}; "
            "load the same model's ordinary file for training, and use the LoRA on any of them"
        )
    return family


def _foreign_kind(model: ModelPatcher) -> str | None:
    """Return what a base is that gradients can't flow through, ``None`` for an ordinary one."""
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
        # Core has a backward for the formats whose kernels also quantise the layer's input.
        if quantised is not None and not QUANT_ALGOS[quantised].get("quantize_input", True):
            return f"a base quantised as {quantised}"
    if model.model.model_config.optimizations.get("fp8"):
        return "a base in fp8_e4m3fn_fast"
    if not type(network).__module__.startswith("comfy."):
        return f"a base with its own network class ({type(network).__name__})"
    return None
