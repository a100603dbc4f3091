"""ComfyUI's progress bar and interrupt, and what a node shows below itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from torch import Tensor

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


def show_text(node_id: str | None, text: str) -> None:
    """Show a text below a node, where a server runs."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)


def warn_on_node(text: str) -> None:
    """Log a warning and show it below the node that runs, where a server runs."""
    logging.warning("Pastiche: %s.", text)
    context = get_executing_context()
    show_text(None if context is None else context.node_id, text)


def node_display(node_id: str | None, pictures: Sequence[Tensor], text: str) -> dict[str, Any]:
    """Return the ``ui`` of a node that shows pictures and a text below itself.

    Args:
        node_id: The node's id in the graph; ``None`` outside a server.
        pictures: IMAGE batches; each may have its own size.
        text: Sent as the node's text too, where a server runs: the frontend shows that one.
    """
    show_text(node_id, text)
    images = [image for picture in pictures for image in ui.PreviewImage(picture).values]
    return {"images": images, "animated": (False,), "text": (text,)}
