"""Show the steps of a training run on its node's progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils

from ...training.progress import Callback, Event


@dataclass(frozen=True)
class ProgressRange:
    """The part of a node's progress bar that one run fills.

    Args:
        offset: Number of steps before the run.
        total: Total number of steps.
    """

    offset: int
    total: int


def progress_bar(progress: ProgressRange, picture: Callable[[], Any] = lambda: None) -> Callback:
    """Return a callback that updates the node's progress bar and raises on the user's interrupt.

    Args:
        progress: Part of the bar that the run fills.
        picture: Function that returns the node's preview in ComfyUI's form, or None.
    """
    bar = comfy.utils.ProgressBar(progress.total)

    def on_step(event: Event) -> None:
        bar.update_absolute(progress.offset + event.step, progress.total, picture())
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step
