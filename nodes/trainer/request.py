"""What every train node's inputs have, and the run that follows from them."""

from __future__ import annotations

from typing import Literal, Protocol

from comfy.model_patcher import ModelPatcher

from ...training import TrainingConfig, TrainingSettings


class Asked(Protocol):
    """What every train node's inputs have; 0 is the family's default."""

    model: ModelPatcher
    steps: int
    rank: int
    learning_rate: float
    seed: int
    settings: TrainingSettings


class Defaults(Protocol):
    """A method's defaults for a family."""

    steps: int
    rank: int
    learning_rate: float
    weight_decay: float


def resolved_config(
    request: Asked,
    defaults: Defaults,
    timesteps: str = "uniform",
    packing: Literal["batched", "sequential"] = "batched",
) -> TrainingConfig:
    """Return the run with every default in its place.

    Args:
        request: The node's inputs.
        defaults: Of the family.
        timesteps: Of the family, where the settings leave them to it.
        packing: Of the rows of a step.

    Raises:
        ValueError: A value is outside its range; the message names it.
    """
    return TrainingConfig.of(
        request.settings,
        steps=request.steps or defaults.steps,
        rank=request.rank or defaults.rank,
        learning_rate=request.learning_rate or defaults.learning_rate,
        seed=request.seed,
        weight_decay=defaults.weight_decay,
        timesteps=timesteps,
        packing=packing,
    )
