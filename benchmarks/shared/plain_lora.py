"""An ordinary LoRA of captioned scenes on the toy base, learnt by this pack's trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.run import run_training
from pack.training import TrainingSettings
from pack.training.recipes.single import LORA

from ..toyworld.scenes import BOAT_SCENES
from ..toyworld.world import Scene, caption
from .toy_base import ToyBase, image_of

RANK = 16
SCHEDULE = "linear"

Lora = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PlainTraining:
    """Steps, learning rate, seed, noise levels and layers; a step sees one picture."""

    steps: int
    learning_rate: float
    seed: int
    timesteps: str = "auto"
    targets: str = "attention"


def pictures(scenes: Sequence[Scene] = BOAT_SCENES) -> tuple[list[torch.Tensor], list[str]]:
    """The eight training pictures, each an IMAGE, and their captions."""
    return [image_of(scene) for scene in scenes], [caption(scene) for scene in scenes]


def learn_with_pack(
    base: ToyBase,
    how: PlainTraining,
    name: str = "boat",
    scenes: Sequence[Scene] = BOAT_SCENES,
) -> Lora:
    """Return the LoRA that this pack's trainer learns; its own run folder keeps it."""
    images, captions = pictures(scenes)
    trainer = PlainTrainer(
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
    return run_training(trainer).loras[LORA]
