"""Wrappers and conditioning entries of one sampling run, shared by styles and regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

STYLE_KEY = "pastiche_style_guidance"  # key of the style guidance's wrappers and conditioning
POSITIVE = "positive"  # what every guider of ComfyUI calls the prompt it follows
OWN_PROMPT = "pastiche_own_prompt"
"""Option of a style's entries: whether they keep their prompt where regions have others."""

Wrapped = Callable[..., Any]

# ``percent_to_sigma`` of a model_sampling, which falls from the first step's sigma to 0.
PercentToSigma = Callable[[float], float]

Entry = dict[str, Any]
"""A conditioning entry inside a sampler: text, options and ``model_conds`` in one dictionary."""


class ModelSampling(Protocol):
    """The part of ComfyUI's ``model_sampling`` that styles and regions use."""

    percent_to_sigma: PercentToSigma


def single_gpu_model(guider: CFGGuider, what: str) -> ModelPatcher:
    """Return a guider's model.

    Args:
        guider: The sampler's guider, before it samples.
        what: What needs the model on one GPU, for the message.

    Raises:
        ValueError: The model runs on several GPUs.
    """
    patcher = guider.model_patcher
    if patcher.get_additional_models_with_key("multigpu"):
        raise ValueError(
            f"{what} must run on a single GPU, got a model with MultiGPU work units; remove the "
            "MultiGPU node"
        )
    return patcher


def wrap_model_call(options: dict[str, Any], key: str, wrapper: Callable[..., Any]) -> None:
    """Put a wrapper around the model's calls, outside of all that are there already.

    So no other pack's wrapper meets what this one takes out of a call or makes of it.

    Args:
        options: The guider's ``model_options``, of this run alone.
        key: Of the wrapper.
        wrapper: As ComfyUI calls APPLY_MODEL's.
    """
    wrappers = options["transformer_options"]["wrappers"]
    others = wrappers.get(WrappersMP.APPLY_MODEL, {})
    wrappers[WrappersMP.APPLY_MODEL] = {key: [wrapper], **others}
