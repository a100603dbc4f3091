"""Regions on a MODEL: each with its own words and LoRAs, for any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....lora_ops import Region
from ...bridge.node_output import warn_on_node
from ..layout.sets import RULES
from .loras import region_lora_layers, warn_of_tokenless
from .prompts import RegionPrompts
from .run import KEY, RegionalPlan, RegionalRun, Wrapped, listening_on


def with_regions(
    model: ModelPatcher,
    regions: Sequence[Region],
    prompts: RegionPrompts | None,
    cells: str,
    pooled: str,
    isolate: bool,
    without_tokens: str,
) -> ModelPatcher:
    """Return a clone of the model that every sampler draws with the regions.

    What the model carries stays: its LoRAs are everywhere. Without a region nothing is changed.

    Args:
        model: The base.
        regions: In order.
        prompts: What is said in them; a region without hears the global prompt.
        cells: One of ``RULES``.
        pooled: One of ``POOLED``.
        isolate: Whether LoRAs of regions leave keys and values of image tokens as they are.
        without_tokens: One of ``TOKENLESS``.

    Raises:
        ValueError: The model has regions already or is of a kind without them, a prompt is of no
            region, or a LoRA does not fit the model.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError(
            "a model must have its regions from one Apply Regional Attention, got one that has "
            "some already; connect the model before it, or join the regions"
        )
    said = (prompts or RegionPrompts()).of(regions)
    plan = RegionalPlan(
        regions=tuple(regions),
        prompts=said,
        loras=[region_lora_layers(model, prompt) for prompt in said],
        rule=RULES[cells],
        pooled=pooled,
        isolate=isolate,
        without_tokens=without_tokens,
    )
    loras = plan.loras_on(model)
    listening_on(model, loras, keeps=False)
    warn_of_tokenless(loras)
    clone = model.clone()
    if not plan.regions:
        warn_on_node("there is no region, so the picture is as without this node")
        return clone
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, RegionalSampling(plan))
    return clone


@dataclass(frozen=True)
class RegionalSampling:
    """The OUTER_SAMPLE wrapper: all that a MODEL with regions carries.

    Args:
        plan: Regions, prompts and settings.
    """

    plan: RegionalPlan

    def __call__(self, executor: Wrapped, *args: Any, **kwargs: Any) -> Tensor:
        """Sample with the regions."""
        with RegionalRun(executor.class_obj, self.plan).attached():
            return executor(*args, **kwargs)
