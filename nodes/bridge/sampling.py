"""Wrap the model calls of one sampling run; shared by style guidance and regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

STYLE_KEY = "pastiche_style_guidance"  # key of style guidance's wrappers and conditioning
POSITIVE = "positive"  # name of the positive prompt in every guider of ComfyUI
# Option of a style's conditioning entries: whether they keep their prompt inside regions that have
# another prompt.
OWN_PROMPT = "pastiche_own_prompt"

Wrapped = Callable[..., Any]  # the function inside a wrapper, which the wrapper calls
# ``percent_to_sigma`` of a model_sampling, which falls from the first step's sigma to 0.
PercentToSigma = Callable[[float], float]
# A conditioning entry inside a sampler: text, options and ``model_conds`` in one dictionary.
Entry = dict[str, Any]


class ModelSampling(Protocol):
    """The part of ComfyUI's ``model_sampling`` that styles and regions use."""

    percent_to_sigma: PercentToSigma


def single_gpu_model(guider: CFGGuider, feature: str) -> ModelPatcher:
    """Return a guider's model, which must run on a single GPU.

    Args:
        guider: Guider of the sampler, before it samples.
        feature: Feature that requires a single GPU, for the message.

    Raises:
        ValueError: The model runs on several GPUs.
    """
    patcher = guider.model_patcher
    if patcher.get_additional_models_with_key("multigpu"):
        raise ValueError(
            f"{feature} must run on a single GPU, got a model with MultiGPU work units; remove the "
            "MultiGPU node"
        )
    return patcher


def wrap_model_call(options: dict[str, Any], key: str, wrapper: Callable[..., Any]) -> None:
    """Add a wrapper around the model's calls, outside all existing wrappers.

    Wrappers of other packs therefore see only the calls that this wrapper makes, without the
    options that it consumes.

    Args:
        options: The guider's ``model_options``, which belong to this run only.
        key: Key of the wrapper.
        wrapper: Wrapper with the signature of ComfyUI's ``APPLY_MODEL``.
    """
    wrappers = options["transformer_options"]["wrappers"]
    others = wrappers.get(WrappersMP.APPLY_MODEL, {})
    wrappers[WrappersMP.APPLY_MODEL] = {key: [wrapper], **others}
