"""Inputs of the plain LoRA trainer on tiny models, and the node run as ComfyUI runs it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from pack.nodes.plain.nodes import TrainPlainLora
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.trainer.request import read_request
from pack.training import TrainingSettings
from pack.training.runs.run_store import run_id
from pair_inputs import picture, vae_for
from tiny import tiny, tiny_clip


def plain_inputs(name: str = "sd3", **changes: Any) -> dict[str, list[Any]]:
    """Return the inputs of the node as ComfyUI passes them, each as a list."""
    values = {
        "model": tiny(name) if "model" not in changes else None,
        "clip": tiny_clip(),
        "vae": vae_for(name),
        "captions": ["a red ball", "a blue box"],
        "steps": 3,
        "rank": 2,
        "learning_rate": 0.01,
        "seed": 5,
        "run_name": "test",
        "images": [picture(seed=1), picture(32, 32, seed=2)],
        "settings": TrainingSettings(),
        **changes,
    }
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def queue(name: str = "sd3", **changes: Any) -> io.NodeOutput:
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    inputs = plain_inputs(name, **changes)
    with torch.inference_mode():
        return TrainPlainLora.PREPARE_CLASS_CLONE(None).execute(**inputs)


def new_trainer(name: str = "sd3", **changes: Any) -> PlainTrainer:
    """Return the trainer that the node would run."""
    inputs = plain_inputs(name, **changes)
    return read_request(PlainTrainer, inputs, inputs.pop("node_id", [None])[0])


def checked_trainer(name: str = "sd3", **changes: Any) -> PlainTrainer:
    """Return the trainer with its inputs checked."""
    trainer = new_trainer(name, **changes)
    trainer.check()
    return trainer


def identity(name: str = "sd3", **changes: Any) -> str:
    """Return the id that the node would give the run."""
    return run_id(checked_trainer(name, **changes).pieces())
