"""Inputs of the concept trainer on tiny models, and the node run as ComfyUI runs it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from pack.nodes.concepts.nodes_train import TrainConcept
from pack.nodes.concepts.train import ConceptTrainer
from pack.nodes.trainer.request import read_request
from pack.training import TrainingSettings
from pack.training.runs.run_store import run_id
from pair_inputs import picture, vae_for
from tiny import tiny, tiny_clip


def clip_for(name: str) -> Any:
    if not name.startswith("sdxl"):
        return tiny_clip()
    from concept_inputs import tiny_sdxl_clip

    return tiny_sdxl_clip()


def concept_inputs(family: str = "sd15", /, **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of the node as ComfyUI passes them, each as a list."""
    values = {
        "model": tiny(family) if "model" not in changes else None,
        "clip": clip_for(family),
        "vae": vae_for(family.partition("_")[0]),
        "images": [picture(seed=1), picture(32, 32, seed=2)],
        "name": "<boat1>",
        "class_word": "boat",
        "captions": ["a red <boat1> on the sea", "<boat1>"],
        "steps": 3,
        "rank": 2,
        "word_rate": 0.01,
        "text_rate": 0.01,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test",
        "settings": TrainingSettings(),
        **changes,
    }
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def queue(family: str = "sd15", /, **changes: Any) -> io.NodeOutput:
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    inputs = concept_inputs(family, **changes)
    with torch.inference_mode():
        return TrainConcept.PREPARE_CLASS_CLONE(None).execute(**inputs)


def new_trainer(family: str = "sd15", /, **changes: Any) -> ConceptTrainer:
    """Return the trainer that the node would run."""
    inputs = concept_inputs(family, **changes)
    return read_request(ConceptTrainer, inputs, inputs.pop("node_id", [None])[0])


def checked_trainer(family: str = "sd15", /, **changes: Any) -> ConceptTrainer:
    """Return the trainer with its inputs checked."""
    trainer = new_trainer(family, **changes)
    trainer.check()
    return trainer


def identity(family: str = "sd15", /, **changes: Any) -> str:
    """Return the id that the node would give the run."""
    return run_id(checked_trainer(family, **changes).pieces())
