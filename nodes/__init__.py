"""The pack's nodes; each module lists its own in NODES."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import files, guide, train

NODES: list[type[io.ComfyNode]] = [*train.NODES, *guide.NODES, *files.NODES]


class PasticheExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES
