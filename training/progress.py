"""What the loop tells the outside after every step; a callback that raises ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One finished training step.

    Args:
        step: Steps done so far, from 1.
        steps: Steps in all.
        loss: Sum of the rows' weighted losses.
        losses: Mean loss by row name, such as ``content`` and ``style``.
    """

    step: int
    steps: int
    loss: float
    losses: Mapping[str, float]


Callback = Callable[[Event], None]
