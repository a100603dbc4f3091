"""Remove the options of a MODEL that affect only sampling."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

_SAMPLING_OPTIONS = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "denoise_mask_function",
    "context_handler",
)


def strip_sampling(patcher: ModelPatcher) -> list[str]:
    """Remove all sampling-time patches from a clone and return their names."""
    options = patcher.model_options
    transformer = options.get("transformer_options", {})
    patches = {
        **{name: options.get(name) for name in _SAMPLING_OPTIONS},
        **{f"transformer_options.{name}": value for name, value in transformer.items()},
        "injections (bypass LoRAs)": patcher.injections,
        "hook LoRAs": patcher.hook_patches,
        "wrappers": [entry for by_key in patcher.wrappers.values() for entry in by_key.values()],
        "additional models": patcher.additional_models,
    }
    patcher.model_options = {"transformer_options": {}}
    patcher.injections, patcher.is_injected = {}, False
    patcher.wrappers = WrappersMP.init_wrappers()
    patcher.hook_patches, patcher.additional_models = {}, {}
    return [name for name, value in patches.items() if value]
