"""What the loop tells the outside after every step.

A callback that raises ends the run; one that returns true ends it as finished.
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
        step: Steps done so far, from 1.
        steps: Steps in all.
        loss: Sum of the rows' weighted losses.
        losses: Mean loss by row name, such as ``content`` and ``style``.
        session: The run, whole: it may be looked at, drawn with and kept, never changed.
    """

    step: int
    steps: int
    loss: float
    losses: Mapping[str, float]
    session: Session


Callback = Callable[[Event], "bool | None"]
