"""Which supported family a MODEL belongs to, and the refusal of everything else by name."""

from __future__ import annotations

import comfy.supported_models as supported
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QUANT_ALGOS

from ...training.families import FAMILIES, Family

_FAMILY_OF_CONFIG: dict[type, str] = {
    supported.SD15: "SD1.5",
    supported.SD20: "SD2",
    supported.SDXL: "SDXL",
    supported.SSD1B: "SDXL",
    supported.Segmind_Vega: "SDXL",
    supported.KOALA_700M: "SDXL",
    supported.KOALA_1B: "SDXL",
    supported.SD3: "SD3",
    supported.Flux: "Flux",
    supported.FluxSchnell: "Flux",
    supported.Flux2: "Flux.2",
    supported.WAN21_T2V: "Wan 2.1",
    supported.QwenImage: "Qwen-Image",
    supported.ZImage: "Z-Image",
}
# The packing of Qwen-Image's patches hides its latent channels in in_channels.
_PACKED_INPUT = {"Qwen-Image"}


def identify(model: ModelPatcher) -> Family:
    """Return the family of a MODEL.

    Raises:
        ValueError: Its class is not supported, or it is an inpainting or edit model.
    """
    base = model.model
    config = getattr(base, "model_config", None)
    name = _FAMILY_OF_CONFIG.get(type(config))
    if name is None:
        raise ValueError(
            f"the model must be one of {', '.join(FAMILIES)}, got {type(base).__name__} "
            f"({type(config).__name__}); load a model of a supported family"
        )
    if name not in _PACKED_INPUT:
        channels = config.unet_config.get("in_channels", config.unet_config.get("in_dim"))
        expected = config.latent_format.latent_channels
        if channels not in (None, expected) or base.concat_keys:
            raise ValueError(
                "inpainting and edit models are not supported, got a "
                f"{name} model with {channels} input channels where {expected} are usual; "
                "load the family's text-to-image model"
            )
    return FAMILIES[name]


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
