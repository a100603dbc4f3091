"""Wrappers of one sampling run on the guider's own options, with which they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP


def wrap_model_call(options: dict[str, Any], key: str, wrapper: Callable[..., Any]) -> None:
    """Put a wrapper around the model's calls, outside of all that are there already.

    So no other pack's wrapper meets what this one takes out of a call or makes of it.

    Args:
        options: The guider's ``model_options``, of this run alone.
        key: Of the wrapper.
        wrapper: As ComfyUI calls APPLY_MODEL's.
    """
    wrappers = options["transformer_options"]["wrappers"]
    others = wrappers.get(WrappersMP.APPLY_MODEL, {})
    wrappers[WrappersMP.APPLY_MODEL] = {key: [wrapper], **others}
