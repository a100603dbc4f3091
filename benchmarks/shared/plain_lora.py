"""Train an ordinary LoRA of captioned scenes on the toy base with this pack's trainer."""

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
    """Options of a plain training, whose steps see one picture each."""

    steps: int
    learning_rate: float
    seed: int
    timesteps: str = "auto"
    targets: str = "attention"


def pictures(scenes: Sequence[Scene] = BOAT_SCENES) -> tuple[list[torch.Tensor], list[str]]:
    """Return the eight training pictures, each an IMAGE, and their captions."""
    return [image_of(scene) for scene in scenes], [caption(scene) for scene in scenes]


def learn_with_pack(
    base: ToyBase,
    training: PlainTraining,
    name: str = "boat",
    scenes: Sequence[Scene] = BOAT_SCENES,
) -> Lora:
    """Return the LoRA that this pack's trainer learns; finished runs are reused."""
    images, captions = pictures(scenes)
    trainer = PlainTrainer(
        base=Base(base.model, base.clip, base.vae),
        images=images,
        captions=captions,
        steps=training.steps,
        rank=RANK,
        learning_rate=training.learning_rate,
        seed=training.seed,
        run_name=name,
        settings=TrainingSettings(
            schedule=SCHEDULE, timesteps=training.timesteps, targets=training.targets
        ),
    )
    return run_training(trainer).loras[LORA]
