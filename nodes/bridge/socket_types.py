"""Declare the pack's own socket types."""

from __future__ import annotations

from comfy_api.latest import io

# Values are a frozen ``training.TrainingSettings``.
TrainingSettingsType = io.Custom("PASTICHE_TRAINING")

# Values are a ``LoraState`` whose metadata contain a ``HalfMetadata``.
HalfType = io.Custom("PASTICHE_HALF")

# Values are a tuple of frozen ``training.files.concept.Concept``.
ConceptType = io.Custom("PASTICHE_CONCEPT")

# Values are a tuple of frozen ``lora_ops.Region``.
RegionsType = io.Custom("PASTICHE_REGIONS")

# Values are a frozen ``RegionPrompts`` of nodes/regions.
RegionPromptsType = io.Custom("PASTICHE_REGION_PROMPTS")

# Values are a frozen ``FusionReport`` of nodes/fusion.
FusionType = io.Custom("PASTICHE_FUSION_REPORT")

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF  # maximum of ComfyUI's seed widgets
