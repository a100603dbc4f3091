"""Both trainers on the same pictures: this pack's Train Plain LoRA and core's Train LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from comfy_extras.nodes_dataset import MakeTrainingDataset
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from pack.nodes.lora.apply import apply_lora
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.run import run_training
from pack.training import TrainingSettings
from pack.training.recipes.single import LORA
from pair_study.base import Drawing, ToyBase
from toyworld.examples import BOAT_SCENES
from toyworld.render import render
from toyworld.world import Scene, caption

RANK = 16
RATES = {"pack": (3e-4, 1e-3, 3e-3), "core": (5e-4, 2e-3, 8e-3)}
"""Three each; core's LoRAs are scaled by 1 / rank, and 0.0005 is its node's default."""
SCHEDULE = "linear"
"""Of the pack's rate; core's node has a constant one alone."""

Lora = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PlainTraining:
    """Steps, rate, seed, noise levels and layers of one training; a step takes one picture."""

    steps: int
    learning_rate: float
    seed: int
    timesteps: str = "auto"
    targets: str = "attention"


def pictures(scenes: Sequence[Scene] = BOAT_SCENES) -> tuple[list[torch.Tensor], list[str]]:
    """The eight training pictures, each an IMAGE, and their captions."""
    images = [torch.from_numpy(render(scene)).float()[None] / 255 for scene in scenes]
    return images, [caption(scene) for scene in scenes]


def learn_with_pack(
    base: ToyBase,
    how: PlainTraining,
    name: str = "boat",
    scenes: Sequence[Scene] = BOAT_SCENES,
) -> Lora:
    """What this pack's trainer learns; kept by its own run folder."""
    images, captions = pictures(scenes)
    request = PlainTrainer(
        base=Base(base.model, base.clip, base.vae),
        images=images,
        captions=captions,
        steps=how.steps,
        rank=RANK,
        learning_rate=how.learning_rate,
        seed=how.seed,
        run_name=name,
        settings=TrainingSettings(schedule=SCHEDULE, timesteps=how.timesteps, targets=how.targets),
    )
    return run_training(request).loras[LORA]


def learn_with_core(base: ToyBase, how: PlainTraining) -> Lora:
    """What core's trainer learns with its defaults but for steps, rank, rate and seed."""
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
            "steps": [how.steps],
            "learning_rate": [how.learning_rate],
            "rank": [RANK],
            "seed": [how.seed],
        }
        lora = TrainLoraNode.execute(**chosen).result[0]
    return {key: tensor.detach().float().cpu().contiguous() for key, tensor in lora.items()}


LEARN: dict[str, Callable[[ToyBase, PlainTraining], Lora]] = {
    "pack": learn_with_pack,
    "core": learn_with_core,
}


def draw(base: ToyBase, arm: str, lora: Lora | None, scenes: list[Scene], seed: int):
    """One picture per scene, ``(scene, 64, 64, 3)`` in 0..1; without a LoRA the base's own."""
    model = base.model
    if lora is not None and arm == "pack":
        model, _ = apply_lora(model, None, lora, 1.0, 0.0)
    elif lora is not None:
        model = LoraModelLoader.execute(model, lora, 1.0, False).result[0]
    return replace(base, model=model).draw(scenes, seed, Drawing("plain"))
