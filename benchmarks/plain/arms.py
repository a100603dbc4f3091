"""Define the arms of the study: this pack's Train Plain LoRA and core's Train LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy_extras.nodes_dataset import MakeTrainingDataset
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from pack.nodes.lora.apply import apply_lora

from ..shared.plain_lora import RANK, Lora, PlainTraining, learn_with_pack, pictures
from ..shared.toy_base import Drawing, ToyBase
from ..toyworld.world import Scene

# Learning rates by arm. Core's LoRAs are scaled by 1 / rank, and 0.0005 is its node's default.
RATES = {"pack": (3e-4, 1e-3, 3e-3), "core": (5e-4, 2e-3, 8e-3)}


def learn_with_core(base: ToyBase, training: PlainTraining) -> Lora:
    """Return the LoRA that core's trainer learns with the options, and else with its defaults."""
    images, captions = pictures()
    with torch.inference_mode():
        latents, positive = MakeTrainingDataset.execute(
            images, [base.vae], [base.clip], captions
        ).result
        defaults = {
            item.id: [item.default]
            for item in TrainLoraNode.GET_SCHEMA().inputs
            if getattr(item, "default", None) is not None
        }
        chosen = {
            **defaults,
            "model": [base.model],
            "latents": latents,
            "positive": positive,
            "steps": [training.steps],
            "learning_rate": [training.learning_rate],
            "rank": [RANK],
            "seed": [training.seed],
        }
        lora = TrainLoraNode.execute(**chosen).result[0]
    return {key: tensor.detach().float().cpu().contiguous() for key, tensor in lora.items()}


LEARN: dict[str, Callable[[ToyBase, PlainTraining], Lora]] = {
    "pack": learn_with_pack,
    "core": learn_with_core,
}


def draw(base: ToyBase, arm: str, lora: Lora | None, scenes: list[Scene], seed: int):
    """Return one picture per scene, ``(scene, 64, 64, 3)`` in 0..1, with the LoRA or without."""
    model = base.model
    if lora is not None and arm == "pack":
        model, _ = apply_lora(model, None, lora, 1.0, 0.0)
    elif lora is not None:
        model = LoraModelLoader.execute(model, lora, 1.0, False).result[0]
    return replace(base, model=model).draw(scenes, seed, Drawing("plain"))
