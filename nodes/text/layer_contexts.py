"""A context of its own for every cross-attention layer of a UNet.

A layer is what ComfyUI counts as ``transformer_index``: one transformer module, in the order in
which the forward meets them, down, middle, up. That is the order of the released Mix-of-Show code,
16 layers in SD1.5 and SD2. SDXL's 70 cross-attentions stand in 11 modules, which are its groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.conds import CONDRegular
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

KEY = "pastiche_concepts"
"""Of the pack's wrappers on a MODEL with concepts."""

LAYERS = "pastiche_layers"
"""Among a condition's ``model_conds`` and the network's arguments: ``(row, layer, token, dim)``."""

ATTENTION_PATCHES = "attn2_patch"
_MOST_REPEATS = 4  # ComfyUI's limit on how far a short context is repeated to meet a long one


class CONDLayers(CONDRegular):
    """Contexts of all layers, batched under the rule that ComfyUI has for an ordinary context.

    ``cond`` is ``(batch, layer, token, dim)``. Rows of different lengths are repeated to their
    least common multiple, which changes no attention.
    """

    def can_concat(self, other: CONDRegular) -> bool:
        """Return whether two rows fit into one forward: if their ordinary contexts do."""
        ours, theirs = self.cond.shape, other.cond.shape
        if (ours[0], ours[1], ours[3]) != (theirs[0], theirs[1], theirs[3]):
            return False
        tokens = math.lcm(ours[2], theirs[2])
        return (
            tokens // min(ours[2], theirs[2]) <= _MOST_REPEATS
            and self.cond.device == other.cond.device
        )

    def concat(self, others: list[CONDRegular]) -> Tensor:
        """Return all rows, the short ones repeated."""
        rows = [self.cond, *(other.cond for other in others)]
        tokens = math.lcm(*(row.shape[2] for row in rows))
        return torch.cat([row.repeat(1, 1, tokens // row.shape[2], 1) for row in rows])


def context_layers(model: ModelPatcher) -> int:
    """Return how many contexts a MODEL can take: its transformer modules, 1 if it is no UNet."""
    modules = model.model.diffusion_model.modules()
    return max(1, sum(isinstance(module, SpatialTransformer) for module in modules))


def with_layers(transformer_options: Mapping[str, Any], layers: Tensor) -> dict[str, Any]:
    """Return options under which a UNet's layers read their own contexts.

    The context is exchanged before any other patch sees it, and before the layer's own
    projections, so LoRAs and IP-Adapters go on working.

    Args:
        transformer_options: Of one forward; untouched.
        layers: ``(row, layer, token, dim)``, on the device and in the dtype of the forward.
    """

    def own_context(
        queries: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = layers[:, options["transformer_index"]]
        return queries, own, own

    patches = transformer_options.get("patches", {})
    others = patches.get(ATTENTION_PATCHES, [])
    return {
        **transformer_options,
        "patches": {**patches, ATTENTION_PATCHES: [own_context, *others]},
    }


def read_layers(
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: Mapping[str, Any] | None = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Run a UNet's forward, each layer with its own context where the call brings contexts.

    A wrapper of ``WrappersMP.DIFFUSION_MODEL``.
    """
    layers = kwargs.pop(LAYERS, None)
    options = transformer_options or {}
    if layers is not None:
        options = with_layers(options, layers)
    return executor(x, timesteps, context, y, control, options, **kwargs)


def layer_wrappers() -> dict[str, dict[str, list[Callable[..., Tensor]]]]:
    """Return ``transformer_options["wrappers"]`` of a forward outside of a sampler."""
    return {WrappersMP.DIFFUSION_MODEL: {KEY: [read_layers]}}
