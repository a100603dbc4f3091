"""Attach style guidance to a MODEL.

The sampler's model calls get extra batch rows, for which alone the style's LoRA is switched on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

from ...lora_ops.keys import changes_text_encoder, parts_by_layer
from ...training.files.lora_file import sound
from ..bridge.conditioning import Conditioning
from ..bridge.node_output import warn_on_node
from ..bridge.sampling import STYLE_KEY
from ..lora.layers import LoraLayers, lora_layers
from .run import Style, StyleRun
from .window import StyleWindow


def with_style_guidance(
    model: ModelPatcher,
    style_lora: Mapping[str, Tensor],
    conditioning: Conditioning,
    window: StyleWindow,
    lora_strength: float = 1.0,
    mask: Tensor | None = None,
) -> ModelPatcher:
    """Return a clone of the model with which every sampler applies the style.

    A model can have several styles: each one adds a separate guidance term with its own LoRA and
    rows. LoRAs that the model has already remain part of every prediction.

    Args:
        model: The base model.
        style_lora: LoRA of the style; it is on in the style's rows only.
        conditioning: Conditioning of the prompt with the style words.
        window: Schedule of the guidance scale.
        lora_strength: Multiplier of the LoRA.
        mask: ``(batch, height, width)`` factor of the guidance term; None for the whole picture.

    Raises:
        ValueError: The LoRA does not fit the model.

    Reference: Jones et al. 2024, arXiv:2405.01536, equations 10 and 11.
    """
    lora = sound(style_lora)
    layers = lora_layers(model, lora)
    _log_unused(lora, layers)
    clone = model.clone()
    before = cast(list[StyledSampling], clone.get_wrappers(WrappersMP.OUTER_SAMPLE, STYLE_KEY))
    style = Style(layers, conditioning, window, lora_strength, mask)
    styles = (*(before[0].styles if before else ()), style)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, STYLE_KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, STYLE_KEY, StyledSampling(styles))
    return clone


def _log_unused(lora: Mapping[str, Tensor], layers: LoraLayers) -> None:
    text = [layer for layer in parts_by_layer(lora) if changes_text_encoder(layer)]
    unknown = layers.unmatched
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
    """The OUTER_SAMPLE wrapper that applies the styles of a MODEL.

    Args:
        styles: Styles in the order of their nodes.
    """

    styles: tuple[Style, ...]

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample with the styles whose scale is not 0; without any, sampling is unchanged."""
        styles = [style for style in self.styles if style.window.style_scale != 0]
        if not styles:
            return executor(*args, **kwargs)
        with StyleRun(cast(CFGGuider, executor.class_obj), styles).attached():
            return executor(*args, **kwargs)
