"""The event that the training loop passes to its callbacks after every step.

A callback that raises ends the run; a callback that returns true ends it as finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Event:
    """One finished training step.

    Args:
        step: Number of steps done, counted from 1.
        steps: Total number of steps.
        loss: Sum of the rows' weighted losses.
        losses: Mean loss by row name, such as ``content`` and ``style``.
        session: The run in a consistent state; callbacks may read it, sample with it and save it,
            but not change it.
    """

    step: int
    steps: int
    loss: float
    losses: Mapping[str, float]
    session: Session


Callback = Callable[[Event], "bool | None"]
