"""Attach regions with prompts and LoRAs to a MODEL, for any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

from ....lora_ops import Region
from ...bridge.node_output import warn_on_node
from ..layout.sets import CELL_RULES
from .loras import region_lora_layers, warn_of_tokenless
from .prompts import RegionPrompts
from .run import KEY, RegionalPlan, RegionalRun, regional_backend


def with_regions(
    model: ModelPatcher,
    regions: Sequence[Region],
    prompts: RegionPrompts | None,
    cells: str,
    pooled: str,
    isolate: bool,
    without_tokens: str,
) -> ModelPatcher:
    """Return a clone of the model with which every sampler applies the regions.

    LoRAs that the model has already act everywhere. Without regions the clone is unchanged.

    Args:
        model: The base model.
        regions: Regions in order.
        prompts: Prompts of the regions; a region without one uses the global prompt.
        cells: One of ``CELL_RULES``.
        pooled: One of ``POOLED``.
        isolate: Whether the regions' LoRAs leave keys and values of image tokens unchanged.
        without_tokens: One of ``TOKENLESS``.

    Raises:
        ValueError: The model has regions already or does not support them, a prompt names no
            region, or a LoRA does not fit the model.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError(
            "a model must have its regions from one Apply Regional Attention, got one that has "
            "some already; connect the model before it, or join the regions"
        )
    region_prompts = (prompts or RegionPrompts()).for_regions(regions)
    plan = RegionalPlan(
        regions=tuple(regions),
        prompts=region_prompts,
        loras=[region_lora_layers(model, prompt) for prompt in region_prompts],
        rule=CELL_RULES[cells],
        pooled=pooled,
        isolate=isolate,
        without_tokens=without_tokens,
    )
    loras = plan.loras_on(model)
    regional_backend(model, loras, cache_keys=False)
    warn_of_tokenless(loras)
    clone = model.clone()
    if not plan.regions:
        warn_on_node("there is no region, so the picture is as without this node")
        return clone
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, RegionalSampling(plan))
    return clone


@dataclass(frozen=True)
class RegionalSampling:
    """The OUTER_SAMPLE wrapper that applies the regions of a MODEL.

    Args:
        plan: Regions, prompts and settings.
    """

    plan: RegionalPlan

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample with the regions."""
        with RegionalRun(cast(CFGGuider, executor.class_obj), self.plan).attached():
            return executor(*args, **kwargs)
