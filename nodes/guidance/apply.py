"""Style guidance on a MODEL: extra rows with a gated LoRA in the sampler's own model calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...lora_ops.keys import changes_text_encoder, parts_by_layer
from ...training.files.lora_file import sound
from ..bridge.node_output import warn_on_node
from ..bridge.sampling import STYLE_KEY, Wrapped
from ..lora.layers import file_sites, unmatched_keys
from .run import Style, StyleRun


def with_style_guidance(model: ModelPatcher, style: Style) -> ModelPatcher:
    """Return a clone of the model that every sampler draws with the style.

    A model that has a style already gets one more: each style is a term of its own, with its own
    LoRA and rows. What the model carries stays below: LoRAs on it are part of every prediction.

    Raises:
        ValueError: The LoRA does not fit the model.

    Reference: Jones et al. 2024, arXiv:2405.01536, equations 10 and 11.
    """
    lora = sound(style.lora)
    file_sites(model, lora)
    _log_unused(model, lora)
    clone = model.clone()
    before = clone.get_wrappers(WrappersMP.OUTER_SAMPLE, STYLE_KEY)
    styles = (*(before[0].styles if before else ()), style)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, STYLE_KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, STYLE_KEY, StyledSampling(styles))
    return clone


def _log_unused(model: ModelPatcher, lora: Mapping[str, Tensor]) -> None:
    text = [layer for layer in parts_by_layer(lora) if changes_text_encoder(layer)]
    unknown = unmatched_keys(model, lora)
    if text:
        logging.info(
            "Pastiche: style guidance leaves out the LoRA's %d text encoder layers; "
            "Apply LoRA (Pastiche) puts them on a CLIP.",
            len(text),
        )
    if unknown:
        warn_on_node(
            f"{len(unknown)} layers of the style LoRA are not in this model and are left out "
            f"(first: {unknown[0][:80]!r})"
        )


@dataclass(frozen=True)
class StyledSampling:
    """The OUTER_SAMPLE wrapper: all that a styled MODEL carries.

    Args:
        styles: In the order of their nodes.
    """

    styles: tuple[Style, ...]

    def __call__(self, executor: Wrapped, *args: Any, **kwargs: Any) -> Tensor:
        """Sample with the styles that have a scale; with none, as if this were not here."""
        styles = [style for style in self.styles if style.window.scale != 0]
        if not styles:
            return executor(*args, **kwargs)
        with StyleRun(executor.class_obj, styles).attached():
            return executor(*args, **kwargs)
