"""Learning rate schedules."""

from __future__ import annotations

import math

from .config import TrainingConfig


def scheduled_rate(learning_rate: float, step: int, config: TrainingConfig) -> float:
    """Return what a learning rate is at step ``step``, counted from 0.

    It rises linearly over ``config.warmup`` steps. Then it is constant, or decays to zero at the
    end of the run, linearly or as half a cosine.
    """
    if step < config.warmup:
        return learning_rate * (step + 1) / config.warmup
    along = (step - config.warmup) / max(1, config.steps - config.warmup)
    left = {
        "constant": 1.0,
        "linear": 1.0 - along,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * along),
    }
    return learning_rate * left[config.schedule]
