"""ComfyUI's progress bar and interrupt, and what a node shows below itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import ui
from torch import Tensor

from ...training.progress import Callback, Event


def progress_bar(steps: int) -> Callback:
    """Return a callback that moves the node's progress bar and ends the run on an interrupt."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(event: Event) -> None:
        bar.update_absolute(event.step, event.steps)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step


def node_display(node_id: str | None, pictures: Sequence[Tensor], text: str) -> dict[str, Any]:
    """Return the ``ui`` of a node that shows pictures and a text below itself.

    Args:
        node_id: The node's id in the graph; ``None`` outside a server.
        pictures: IMAGE batches; each may have its own size.
        text: Sent as the node's text too, where a server runs: the frontend shows that one.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)
    images = [image for picture in pictures for image in ui.PreviewImage(picture).values]
    return {"images": images, "animated": (False,), "text": (text,)}
