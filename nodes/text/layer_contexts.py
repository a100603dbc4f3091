"""Give every cross-attention layer of a UNet a separate context.

A layer is the unit that ComfyUI counts as ``transformer_index``: one transformer module, in the
order of the forward pass (down, middle, up). The released Mix-of-Show code uses the same order,
with 16 layers in SD1.5 and SD2. In SDXL, 70 cross-attentions belong to 11 such modules, and all of
a module share one context.
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

KEY = "pastiche_concepts"  # key of the pack's wrappers on a MODEL with concepts

# Key of the layers' contexts ``(row, layer, token, dim)`` in a condition's ``model_conds`` and in
# the network's arguments.
LAYERS = "pastiche_layers"

ATTENTION_PATCHES = "attn2_patch"
_MAX_REPEATS = 4  # ComfyUI's limit for repeating a short context to the length of a long one


class CONDLayers(CONDRegular):
    """Contexts of all layers, batched by the same rule as ComfyUI's ordinary contexts.

    ``cond`` is ``(batch, layer, token, dim)``. Rows of different lengths are repeated to their
    least common multiple, which does not change the attention.
    """

    def can_concat(self, other: CONDRegular) -> bool:
        """Return whether two conditions fit into one forward pass, as for ordinary contexts."""
        ours, theirs = self.cond.shape, other.cond.shape
        if (ours[0], ours[1], ours[3]) != (theirs[0], theirs[1], theirs[3]):
            return False
        tokens = math.lcm(ours[2], theirs[2])
        return (
            tokens // min(ours[2], theirs[2]) <= _MAX_REPEATS
            and self.cond.device == other.cond.device
        )

    def concat(self, others: list[CONDRegular]) -> Tensor:
        """Return all rows as one batch, with short contexts repeated."""
        rows = [self.cond, *(other.cond for other in others)]
        tokens = math.lcm(*(row.shape[2] for row in rows))
        return torch.cat([row.repeat(1, 1, tokens // row.shape[2], 1) for row in rows])


def context_layers(model: ModelPatcher) -> int:
    """Return the number of contexts that a MODEL can take; 1 if it is not a UNet."""
    modules = model.model.diffusion_model.modules()
    return max(1, sum(isinstance(module, SpatialTransformer) for module in modules))


def with_layers(transformer_options: Mapping[str, Any], layers: Tensor) -> dict[str, Any]:
    """Return transformer options with which every layer of a UNet reads its own context.

    The context is replaced before any other patch and before the layer's projections, so LoRAs and
    IP-Adapters still work.

    Args:
        transformer_options: Options of one forward pass; not modified.
        layers: ``(row, layer, token, dim)``, on the device and in the dtype of the forward pass.
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
    """Run a UNet's forward pass; if the call has contexts for the layers, each layer uses its own.

    This is a wrapper of ``WrappersMP.DIFFUSION_MODEL``.
    """
    layers = kwargs.pop(LAYERS, None)
    options = transformer_options or {}
    if layers is not None:
        options = with_layers(options, layers)
    return executor(x, timesteps, context, y, control, options, **kwargs)


def layer_wrappers() -> dict[str, dict[str, list[Callable[..., Tensor]]]]:
    """Return ``transformer_options["wrappers"]`` for a forward pass outside a sampler."""
    return {WrappersMP.DIFFUSION_MODEL: {KEY: [read_layers]}}
