"""Inject region prompts into the cross-attention of a UNet.

Each cross-attention layer projects the text of every region to keys and values. These are the same
in every step and are therefore cached for one sampling run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import CrossAttention, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ...text.layer_contexts import ATTENTION_PATCHES
from .call import (
    Attention,
    KeysValues,
    RegionalCall,
    mixed_attention,
    mixed_replacement,
    require_reached,
    split_texts,
    text_tokens,
    widened_context,
    with_attention_override,
)
from .loras import RegionalLoras
from .texts import EncodedText, repeated

_OUTPUT = "attn2_output_patch"  # ComfyUI's patches of a cross-attention layer's output

_BLOCKS = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}


@dataclass(frozen=True, eq=False)
class _Layer:
    """The attention layer that is about to be computed.

    Args:
        call: The model call.
        module: The layer.
        number: Index of its transformer, which selects the context of texts with one per layer.
        lengths: Number of tokens of each text in a wide context; None if the context is unchanged
            and only keys and values are replaced.
    """

    call: RegionalCall
    module: CrossAttention
    number: int
    lengths: tuple[int, ...] | None


# Layer, region, text, row of the text's batch, and dtype.
_KeysKey = tuple[CrossAttention, int, EncodedText, int, torch.dtype]


class UNetBackend:
    """Backend for the cross-attention of a UNet.

    Args:
        network: The UNet.
        loras: The regions' LoRAs, which may change the layers that project keys and values.
        cache_keys: Whether keys and values may be cached, which is wrong if the weights change
            during the run.
    """

    repeats = True

    def __init__(self, network: UNetModel, loras: RegionalLoras, cache_keys: bool):
        self._modules = _cross_attention(network)
        self._loras = loras
        self._cache_keys = cache_keys
        self._kept: dict[_KeysKey, KeysValues] = {}
        self._layer: _Layer | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Forget a layer that was announced in an earlier call; attach no hooks."""
        self._layer = None
        yield

    def prepare(
        self, call: RegionalCall, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the unchanged context, and options whose attention layers mix the regions' texts.

        If another pack patches the context, its patches get the global prompt followed by the
        regions' texts, and nothing is cached. A pack's replacement of a whole layer is called once
        for each text.
        """
        patches = options.get("patches", {})
        others = patches.get(ATTENTION_PATCHES, [])
        widens = bool(others) or not self._cache_keys

        def announce(
            n: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]
        ) -> tuple[Tensor, Tensor, Tensor]:
            module = self._modules[(*extra["block"], extra["block_index"])]
            number = extra["transformer_index"]
            lengths = None
            if widens:
                same = value is context
                whole, lengths = widened_context(call, context, number)
                value = whole if same else torch.cat([value, whole[:, context.shape[1] :]], 1)
                context = whole
            self._layer = _Layer(call, module, number, lengths)
            return n, context, value

        def check(n: Tensor, extra: Mapping[str, Any]) -> Tensor:
            require_reached(self._layer is not None)
            return n

        replaced = options.get("patches_replace", {})
        ours = {
            **options,
            "patches": {
                **patches,
                ATTENTION_PATCHES: [announce, *others],
                _OUTPUT: [check, *patches.get(_OUTPUT, [])],
            },
            "patches_replace": {
                **replaced,
                "attn2": {
                    block: self._regional(patch)
                    for block, patch in replaced.get("attn2", {}).items()
                },
            },
        }
        # The LoRAs of the key and value projections need the lengths of their input in this call.
        own = context.shape[1]
        lengths = text_tokens(call, own) if widens else (own, *(0 for _ in call.regions))
        return context, with_attention_override(ours, self._attention), lengths

    def _attention(
        self,
        function: Attention,
        attention: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        layer, self._layer = self._layer, None
        if layer is None:
            return attention(q, k, v, heads, *args, **kwargs)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, heads, *args, **kwargs)

        base, regions = self._texts(layer, k, v)
        return mixed_attention(layer.call, q, base, regions, heads, attend)

    def _regional(self, patch: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return another pack's replacement of a layer, extended to the texts of all regions."""

        def replacement(q: Tensor, k: Tensor, v: Tensor, extra: Mapping[str, Any]) -> Tensor:
            layer, self._layer = self._layer, None
            if layer is None:
                return patch(q, k, v, extra)
            base, regions = self._texts(layer, k, v)
            return mixed_replacement(
                layer.call, q, base, regions, lambda q, k, v: patch(q, k, v, extra)
            )

        return replacement

    def _texts(
        self, layer: _Layer, k: Tensor, v: Tensor
    ) -> tuple[KeysValues, list[KeysValues | None]]:
        if layer.lengths is not None:
            return split_texts(k, v, layer.lengths)
        return (k, v), [self._keys(layer, region, k, v) for region in layer.call.regions]

    def _keys(self, layer: _Layer, region: int, k: Tensor, v: Tensor) -> KeysValues | None:
        """Return the keys and values of a region's texts for all rows."""
        call = layer.call
        texts = [call.text(row, region) for row in range(len(call.entries))]
        if all(text is None for text in texts):
            return None
        pairs = [
            (k[row], v[row]) if text is None else self._projected(layer, region, text, row, k)
            for row, text in enumerate(texts)
        ]
        return repeated([pair[0] for pair in pairs]), repeated([pair[1] for pair in pairs])

    def _projected(
        self, layer: _Layer, region: int, text: EncodedText, row: int, like: Tensor
    ) -> KeysValues:
        """Return keys and values of a row's text, ``(token, channel)``, with the region's LoRAs."""
        number = row % layer.call.batch
        key = (layer.module, region, text, number % len(text.context), like.dtype)
        if key not in self._kept:
            context = text.at(layer.number, number, like)[None]
            with self._loras.on_text_of(region):
                keys, values = layer.module.to_k(context), layer.module.to_v(context)
            self._kept[key] = keys[0], values[0]
        return self._kept[key]


def _cross_attention(network: UNetModel) -> dict[tuple[str, int, int], CrossAttention]:
    """Return the cross-attention layers by the block names that ComfyUI's patches get."""
    found = {}
    for name, attribute in _BLOCKS.items():
        blocks = getattr(network, attribute)
        for number, block in enumerate([blocks] if name == "middle" else blocks or []):
            for module in block.children() if block is not None else ():
                if isinstance(module, SpatialTransformer):
                    for index, inner in enumerate(module.transformer_blocks):
                        found[name, number, index] = inner.attn2
    return found
