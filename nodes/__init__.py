"""The pack's nodes; each module lists its own in NODES."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    b4m,
    break_for_make,
    concepts,
    data,
    files,
    fusion,
    guide,
    halves,
    regional,
    regions,
    settings,
    train,
    train_concept,
)
from .bridge.live_routes import register_routes

NODES: list[type[io.ComfyNode]] = [
    *data.NODES,
    *train.NODES,
    *break_for_make.NODES,
    *b4m.NODES,
    *train_concept.NODES,
    *settings.NODES,
    *guide.NODES,
    *files.NODES,
    *halves.NODES,
    *concepts.NODES,
    *fusion.NODES,
    *regions.NODES,
    *regional.NODES,
]


class PasticheExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def on_load(self) -> None:
        """Add the pack's routes to the server."""
        register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES
