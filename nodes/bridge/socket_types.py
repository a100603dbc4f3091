"""Socket types of the pack's own, and single values out of inputs that come as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from comfy_api.latest import io

TrainingSettingsType = io.Custom("PASTICHE_TRAINING")
"""A frozen ``training.TrainingSettings``."""

HalfType = io.Custom("PASTICHE_HALF")
"""A ``LoraState`` whose metadata say which half of which basis it is."""

ConceptType = io.Custom("PASTICHE_CONCEPT")
"""A tuple of frozen ``training.concept.Concept``."""

RegionsType = io.Custom("PASTICHE_REGIONS")
"""A tuple of frozen ``lora_ops.Region``."""

RegionPromptsType = io.Custom("PASTICHE_REGION_PROMPTS")
"""A frozen ``RegionPrompts``."""

FusionType = io.Custom("PASTICHE_FUSION_REPORT")
"""A frozen ``fusion.report.FusionReport``."""

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
"""Of ComfyUI's seed widgets."""

Value = TypeVar("Value")


def only(name: str, values: Sequence[Value]) -> Value:
    """Return the one value of an input of a node that takes lists.

    Raises:
        ValueError: A list of several values, or of none, is connected to it.
    """
    if len(values) != 1:
        raise ValueError(
            f"{name} must be a single value, got a list of {len(values)}; connect one value"
        )
    return values[0]


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the lines of a text input that hold something, whether it came whole or as a list."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
