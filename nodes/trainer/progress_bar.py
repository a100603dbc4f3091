"""A training run's part of its node's progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils

from ...training.progress import Callback, Event


@dataclass(frozen=True)
class ProgressRange:
    """A run's part of a node's progress bar: steps before it, and steps in all."""

    before: int
    total: int


def progress_bar(progress: ProgressRange, picture: Callable[[], Any] = lambda: None) -> Callback:
    """Return a callback that moves the node's progress bar and ends the run on an interrupt.

    Args:
        progress: The run's part of the bar.
        picture: Gives what ComfyUI shows as the node's preview, or ``None``.
    """
    bar = comfy.utils.ProgressBar(progress.total)

    def on_step(event: Event) -> None:
        bar.update_absolute(progress.before + event.step, progress.total, picture())
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step
