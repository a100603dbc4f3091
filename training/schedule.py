"""The learning rate's course over a run."""

from __future__ import annotations

import math

from .config import TrainingConfig


def scheduled_rate(learning_rate: float, step: int, config: TrainingConfig) -> float:
    """Return what a learning rate is at step ``step``, counted from 0.

    It rises evenly over ``config.warmup`` steps, then stays, or falls towards nothing at the run's
    end in a line or in half a cosine.
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
