"""Show texts and pictures below a node."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from torch import Tensor


def show_text(node_id: str | None, text: str) -> None:
    """Show a text below a node; without a server nothing happens."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)


def warn_on_node(text: str) -> None:
    """Log a warning and, if a server runs, show it below the node that is being executed."""
    logging.warning("Pastiche: %s.", text)
    context = get_executing_context()
    show_text(None if context is None else context.node_id, text)


def node_display(node_id: str | None, pictures: Sequence[Tensor], text: str) -> dict[str, Any]:
    """Return the ``ui`` of a node that shows pictures and a text.

    Args:
        node_id: The node's id in the graph; ``None`` outside a server.
        pictures: IMAGE batches; each may have its own size.
        text: Text of the node. It is also sent as progress text, which the frontend displays.
    """
    show_text(node_id, text)
    images = [image for picture in pictures for image in ui.PreviewImage(picture).values]
    return {"images": images, "animated": (False,), "text": (text,)}
