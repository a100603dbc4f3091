"""The pack's nodes, collected from the ``NODES`` list of every node module."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .break_for_make import nodes_all_stages, nodes_files, nodes_sheet
from .break_for_make import nodes_train as nodes_train_half
from .concepts import nodes_train as nodes_train_concept
from .concepts import nodes_use as nodes_use_concept
from .fusion import nodes as fusion_nodes
from .guidance import nodes as guidance_nodes
from .lora import nodes as lora_nodes
from .pair import nodes as pair_nodes
from .pictures import nodes as pictures_nodes
from .plain import nodes as plain_nodes
from .regions import nodes_apply as nodes_apply_regions
from .regions import nodes_layout as nodes_region_layout
from .trainer import nodes as trainer_nodes
from .trainer.panel_routes import register_routes

NODES: list[type[io.ComfyNode]] = [
    *pictures_nodes.NODES,
    *pair_nodes.NODES,
    *plain_nodes.NODES,
    *nodes_train_half.NODES,
    *nodes_all_stages.NODES,
    *nodes_train_concept.NODES,
    *trainer_nodes.NODES,
    *guidance_nodes.NODES,
    *lora_nodes.NODES,
    *nodes_files.NODES,
    *nodes_sheet.NODES,
    *nodes_use_concept.NODES,
    *fusion_nodes.NODES,
    *nodes_region_layout.NODES,
    *nodes_apply_regions.NODES,
]


class PasticheExtension(ComfyExtension):
    """The extension through which ComfyUI loads the pack's nodes."""

    async def on_load(self) -> None:
        """Add the pack's routes to the server."""
        register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES
