"""ComfyUI-Pastiche: learn a style from before/after pairs and use it in any graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """Return the pack's extension; ComfyUI is imported here and not before."""
    from .nodes import PasticheExtension

    return PasticheExtension()
