"""Inject region prompts into transformers with joint attention.

The texts of all regions are concatenated into one stream and are separated by attention masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ....lora_ops import stream_bias
from ..layout.region_maps import Grid, RegionMaps
from .call import OVERRIDE, Attention, RegionalCall, RowGroup, with_attention_override
from .masks import AttentionMasks, MaskedAttention

# Region maps, whether regions act, tokens of the row's texts, and tokens of the slots.
BiasKey = tuple[RegionMaps, bool, tuple[int, ...], tuple[int, ...]]


class JointAttentionBackend:
    """Backend for joint attention, as in SD3 and Flux.

    All texts form one stream. A mask lets no text attend to another one, and each image token
    attend only to the texts of its regions.

    Args:
        patch: Latent pixels of an image token along each side.
        positions: Coordinates of a text token that hold its position in the prompt, as in Flux.2.
    """

    repeats = False

    def __init__(self, patch: int, positions: Sequence[int] = ()):
        self._patch = patch
        self._positions = list(positions)
        self._biases: dict[BiasKey, Tensor] = {}
        self._attention = MaskedAttention()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach nothing, because the transformer options contain everything."""
        yield

    def prepare(
        self, call: RegionalCall, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the context with all texts, and options whose attention is masked."""
        streams = [
            [_stream(call, row, region, context) for region in call.regions]
            for row in range(len(call.entries))
        ]
        slots = tuple(max(len(row[region]) for row in streams) for region in call.regions)
        lengths = (context.shape[1], *slots)
        if not any(slots):
            return context, dict(options), lengths
        padded = [
            torch.cat([_padded(text, size) for text, size in zip(row, slots, strict=True)])
            for row in streams
        ]
        image = self._image_tokens(call)
        group_of = {row: group for group in call.groups for row in group.indices}
        biases = [
            self._bias(group_of[row], tuple(len(text) for text in texts), lengths)
            for row, texts in enumerate(streams)
        ]
        total = sum(lengths) + image
        masks = AttentionMasks(biases)
        before = options.get(OVERRIDE)

        def ours(
            function: Attention,
            attention: Attention,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            tokens = q.shape[-2]
            if tokens == image:  # self-attention of the image tokens
                return attention(q, k, v, *args, **kwargs)
            if tokens != total or kwargs.get("mask") is not None:
                raise RuntimeError(
                    "regions must be alone in telling which tokens hear each other, got "
                    f"{tokens} tokens where {total} were expected or another mask; remove "
                    "reference pictures, Redux masks and patches that add tokens"
                )
            return self._attention(function, before, masks, (q, k, v, *args), kwargs)

        whole = torch.cat([context, torch.stack(padded)], dim=1)
        return whole, self._with_positions(with_attention_override(options, ours), lengths), lengths

    def _image_tokens(self, call: RegionalCall) -> int:
        shapes = {group.maps.shape for group in call.groups}
        if len(shapes) != 1:
            raise RuntimeError(f"rows of one call must be of one size, got {sorted(shapes)}")
        rows, columns = self._grid(shapes.pop())
        return rows * columns

    def _grid(self, shape: Grid) -> Grid:
        """Return the rows and columns of image tokens for a latent of this height and width."""
        return -(-shape[0] // self._patch), -(-shape[1] // self._patch)

    def _bias(self, group: RowGroup, own: tuple[int, ...], lengths: tuple[int, ...]) -> Tensor:
        """Return the mask of one row, ``(text + image, text + image)``.

        Args:
            group: The row's group.
            own: Number of tokens of the row's text in each region; 0 for its own prompt.
            lengths: Number of tokens of each slot, the global prompt's first. A slot is longer than
                ``own`` if another row's text is.
        """
        key = (group.maps, group.regional, own, lengths)
        if key not in self._biases:
            without_prompt = frozenset(
                i for i, tokens in enumerate(own) if not tokens or not group.regional
            )
            mixing = group.maps.mixing(self._grid(group.maps.shape), 1, without_prompt)
            self._biases[key] = stream_bias(mixing, lengths, (lengths[0], *own))
        return self._biases[key]

    def _with_positions(self, options: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
        """Return options in which the positions of every text start at 0."""
        if not self._positions:
            return options
        positions = torch.cat([torch.arange(length) for length in lengths])

        def restart(args: dict[str, Any]) -> dict[str, Any]:
            ids = args["txt_ids"].clone()
            ids[..., self._positions] = positions.to(ids)[:, None]
            return {**args, "txt_ids": ids}

        patches = options.get("patches", {})
        inputs = [restart, *patches.get("post_input", [])]
        return {**options, "patches": {**patches, "post_input": inputs}}


def _stream(call: RegionalCall, row: int, region: int, like: Tensor) -> Tensor:
    """Return a row's text in a region, ``(token, dim)``; no tokens for the row's own prompt."""
    text = call.text(row, region)
    return like[row, :0] if text is None else text.at(0, row % call.batch, like)


def _padded(text: Tensor, size: int) -> Tensor:
    return torch.cat([text, text.new_zeros(size - len(text), text.shape[1])])
