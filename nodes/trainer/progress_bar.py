"""A training run's part of its node's progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils

from ...training.progress import Callback, Event


@dataclass(frozen=True)
class Share:
    """A run's part of a node's progress bar: steps before it, and steps in all."""

    before: int
    total: int


def progress_bar(share: Share, picture: Callable[[], Any] = lambda: None) -> Callback:
    """Return a callback that moves the node's progress bar and ends the run on an interrupt.

    Args:
        share: Of the run.
        picture: Gives what ComfyUI shows as the node's preview, or ``None``.
    """
    bar = comfy.utils.ProgressBar(share.total)

    def on_step(event: Event) -> None:
        bar.update_absolute(share.before + event.step, share.total, picture())
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step
