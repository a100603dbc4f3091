"""ComfyUI-Pastiche: train content and style for diffusion models and combine them in any graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """Return the pack's extension.

    ComfyUI is imported only here, so that the package can be imported without it.
    """
    from .nodes import PasticheExtension

    return PasticheExtension()
