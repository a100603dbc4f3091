"""Concepts and LoRAs to fuse on tiny models, and the node run as ComfyUI runs it."""

from __future__ import annotations

from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from concept_inputs import concept_for, text_lora, tiny_sdxl_clip
from gated_loras import random_factors
from pack.nodes.bridge.families import identify
from pack.nodes.fusion.nodes import ConceptForFusion, GradientFusion
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import LoraState, lora_state
from tiny import tiny, tiny_clip

NAME = "sd15_layers"  # four transformer modules, so four contexts
SETTINGS: dict[str, Any] = {
    "activations": "own",
    "anchor": "base",
    "damping": 0.0,
    "rank": 0,
    "energy": 1.0,
    "steps": 2,
    "size": 64,
    "seed": 5,
    "prior_prompts": "",
    "prior_weight": 0.2,
    "statistics": "nothing",
}


def plain_lora(
    model: Any, seed: int, *, targets: str = "attention", text: bool = True, rank: int = 3
) -> LoraState:
    """Return a random ordinary LoRA for a tiny model."""
    sites = training_sites(model, targets)
    layers = {
        name: random_factors(site, 100 * seed + i, rank)
        for i, (name, site) in enumerate(sites.items())
    }
    if text:
        layers |= text_lora(seed + 50)
    return lora_state(layers, {"modelspec.architecture": identify(model).architecture})


def lora_to_fuse(lora: Any, prompts: str = "a photo of a red boat", /, **changes: Any) -> tuple:
    """Return an ordinary LoRA, prepared for a fusion by Concept for Fusion."""
    values = {"strength": 0.7, "weight": 1.0, "name": "boat", **changes}
    return ConceptForFusion.execute(prompts, lora=lora, **values)[0]


def two_concepts(name: str = NAME) -> list[tuple]:
    """Return a trained concept and an ordinary LoRA."""
    model = tiny(name)
    return [(concept_for(model, "sks", seed=1),), lora_to_fuse(plain_lora(model, 2))]


def queue_fusion(wires: list[tuple], name: str = NAME, /, **changes: Any) -> io.NodeOutput:
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    values = {
        "model": tiny(name) if "model" not in changes else None,
        "clip": tiny_sdxl_clip() if name.startswith("sdxl") else tiny_clip(),
        "concepts": {f"concept{number}": wire for number, wire in enumerate(wires)},
        **SETTINGS,
        **changes,
    }
    with torch.inference_mode():
        return GradientFusion.PREPARE_CLASS_CLONE(None).execute(**values)


def set_output_folder(folder: Any) -> None:
    """Set ComfyUI's output folder."""
    folder_paths.set_output_directory(str(folder))
