"""Socket types of the pack's own."""

from __future__ import annotations

from comfy_api.latest import io

TrainingSettingsType = io.Custom("PASTICHE_TRAINING")
"""A frozen ``training.TrainingSettings``."""

HalfType = io.Custom("PASTICHE_HALF")
"""A ``LoraState`` whose metadata say which half of which basis it is."""

ConceptType = io.Custom("PASTICHE_CONCEPT")
"""A tuple of frozen ``training.files.concept.Concept``."""

RegionsType = io.Custom("PASTICHE_REGIONS")
"""A tuple of frozen ``lora_ops.Region``."""

RegionPromptsType = io.Custom("PASTICHE_REGION_PROMPTS")
"""A frozen ``RegionPrompts``."""

FusionType = io.Custom("PASTICHE_FUSION_REPORT")
"""A frozen ``fusion.report.FusionReport``."""

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
"""Of ComfyUI's seed widgets."""
