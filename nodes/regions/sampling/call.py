"""Describe one model call with regions, and mix the regions' prompts in its attention layers.

The kinds of network differ only in how the regions' texts reach the attention; the mixing is the
same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ....lora_ops import regional_attention
from ....lora_ops.mixing import mix_outputs
from ..layout.region_maps import RegionMaps
from .texts import EncodedText, EntryPrompts, repeated

OVERRIDE = "optimized_attention_override"  # ComfyUI's option that replaces the attention function

Attention = Callable[..., Tensor]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows of a call with the same region maps.

    Args:
        indices: Indices of the rows.
        maps: Masks of the regions in these rows.
        regional: Whether the rows use the regions' prompts.
    """

    indices: tuple[int, ...]
    maps: RegionMaps
    regional: bool


@dataclass(frozen=True, eq=False)
class RegionalCall:
    """One model call.

    Args:
        entries: Prompts of the conditioning entry of each row.
        groups: All rows, grouped by their region maps.
        batch: Number of rows of each conditioning entry.
    """

    entries: tuple[EntryPrompts, ...]
    groups: tuple[RowGroup, ...]
    batch: int

    def text(self, row: int, region: int) -> EncodedText | None:
        """Return the text of a row in a region; None for the row's own prompt."""
        entry = self.entries[row]
        return entry.texts[region] if entry.regional else None

    @property
    def regions(self) -> range:
        """Return the numbers of the regions."""
        return range(len(self.entries[0].texts))


class RegionalBackend(Protocol):
    """Injection of region prompts into the attention of one kind of network.

    Args:
        repeats: Whether the texts of a call are repeated to a common length.
    """

    repeats: bool

    def attached(self) -> AbstractContextManager[None]:
        """Attach the hooks that a prepared call needs, inside the block."""
        ...

    def prepare(
        self, call: RegionalCall, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the call's context, its transformer options, and the number of tokens per text.

        Args:
            call: The call.
            context: Context of the rows, ``(row, token, dim)``.
            options: Transformer options; not modified.

        Returns:
            Context, options, and the numbers of tokens of the global prompt and of each region's
            text in that context.
        """
        ...


def mixed_attention(
    call: RegionalCall,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    heads: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return cross-attention of all rows in which each token attends to the texts of its regions.

    Args:
        call: The call.
        q: ``(row, token, channel)``.
        base: Keys and values of the rows' own prompts, ``(row, text, channel)``.
        regions: Keys and values of each region; None if all rows use their own prompt there.
        heads: Number of attention heads of the layer.
        attend: Attention of ``(q, k, v)``.
    """
    _require_rows(call, q)
    parts = [
        _attention(
            group, _rows_of(group, q), base, regions, heads, attend, whole=len(call.groups) == 1
        )
        for group in call.groups
    ]
    if len(parts) == 1:
        return parts[0]
    out = torch.empty_like(parts[0][:1].expand(q.shape[0], -1, -1))
    for group, part in zip(call.groups, parts, strict=True):
        out[list(group.indices)] = part
    return out


def mixed_replacement(
    call: RegionalCall,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    replacement: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return a replaced layer's outputs for the texts of all regions, mixed token by token.

    Another node's replacement is called once per text, each time with all rows and tokens, because
    it may depend on their number. Its effect on the attention thus applies in every region.

    Args:
        call: The call.
        q: ``(row, token, channel)``.
        base: Keys and values of the rows' own prompts, ``(row, text, channel)``.
        regions: Keys and values of each region; None if all rows use their own prompt there.
        replacement: The other node's function of ``(q, k, v)``.
    """
    _require_rows(call, q)
    plain = replacement(q, *base)
    regional = [group for group in call.groups if group.regional and not group.maps.empty]
    if not regional:
        return plain
    outputs = [None if pair is None else replacement(q, *pair) for pair in regions]
    out = plain.clone()
    for group in regional:
        grid, frames = group.maps.grid_of(q.shape[1])
        own = [None if output is None else _rows_of(group, output) for output in outputs]
        mixing = group.maps.mixing_like(grid, frames, plain)
        out[list(group.indices)] = mix_outputs(_rows_of(group, plain), own, mixing)
    return out


def _require_rows(call: RegionalCall, q: Tensor) -> None:
    if q.shape[0] != len(call.entries):
        raise RuntimeError(
            "regions must know each row of an attention layer, got "
            f"{q.shape[0]} rows for {len(call.entries)} of the call; remove the node that regroups "
            "the batch"
        )


def _rows_of(group: RowGroup, x: Tensor) -> Tensor:
    return x if len(group.indices) == x.shape[0] else x[list(group.indices)]


def _attention(
    group: RowGroup,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    heads: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    whole: bool,
) -> Tensor:
    """Return the attention of one group; ``whole`` means that it has all rows of the call."""

    def own(pair: KeysValues) -> KeysValues:
        return pair if whole else (_rows_of(group, pair[0]), _rows_of(group, pair[1]))

    if group.maps.empty or not group.regional:
        return attend(q, *own(base))
    grid, frames = group.maps.grid_of(q.shape[1])
    mixing = group.maps.mixing_like(grid, frames, q)
    texts = [None if pair is None else own(pair) for pair in regions]
    return regional_attention(q, *own(base), texts, mixing, heads=heads, attend=attend)


def text_tokens(call: RegionalCall, own: int) -> tuple[int, ...]:
    """Return the numbers of tokens of the global prompt and each region's text in a wide context.

    Args:
        call: The call.
        own: Number of tokens of the rows' own prompts.
    """
    lengths = [own]
    for region in call.regions:
        texts = [call.text(row, region) for row in range(len(call.entries))]
        used = any(text is not None for text in texts)
        tokens = [own if text is None else text.context.shape[-2] for text in texts]
        lengths.append(math.lcm(*tokens) if used else 0)
    return tuple(lengths)


def widened_context(
    call: RegionalCall, context: Tensor, layer: int = 0
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the context followed by every region's text, and the number of tokens of each.

    A region in which every row uses its own prompt adds nothing. If only some rows do, their own
    prompt is repeated in that region.

    Args:
        call: The call.
        context: ``(row, token, dim)``.
        layer: Index of the layer, for texts with one context per layer.
    """
    parts, lengths = [context], text_tokens(call, context.shape[1])
    for region in call.regions:
        if not lengths[1 + region]:
            continue
        texts = [call.text(row, region) for row in range(len(call.entries))]
        rows = [
            context[row] if text is None else text.at(layer, row % call.batch, context)
            for row, text in enumerate(texts)
        ]
        parts.append(repeated(rows))
    return torch.cat(parts, dim=1), lengths


def split_texts(
    keys: Tensor, values: Tensor, lengths: Sequence[int]
) -> tuple[KeysValues, list[KeysValues | None]]:
    """Return the keys and values of the global prompt and of each region.

    Tokens after the texts were appended by another patch, such as an IP-Adapter, and belong to all
    prompts.
    """
    rest = keys.shape[1] - sum(lengths)
    if rest < 0:
        raise RuntimeError(
            "regions must find their texts in the attention layers, got "
            f"{keys.shape[1]} tokens where {sum(lengths)} were given; remove the node that "
            "exchanges the text of single layers"
        )
    *own_keys, more_keys = keys.split([*lengths, rest], dim=1)
    *own_values, more_values = values.split([*lengths, rest], dim=1)
    pairs = [
        (torch.cat([k, more_keys], 1), torch.cat([v, more_values], 1)) if rest else (k, v)
        for k, v in zip(own_keys, own_values, strict=True)
    ]
    return pairs[0], [
        pair if length else None for pair, length in zip(pairs[1:], lengths[1:], strict=True)
    ]


def require_reached(waiting: bool) -> None:
    """Raise if a layer that reads the text has run without the regions' attention.

    Args:
        waiting: Whether the layer was announced and its attention has not been computed since.

    Raises:
        RuntimeError: Another node has replaced the layer's forward.
    """
    if waiting:
        raise RuntimeError(
            "regions must reach every layer that reads the text, got one whose forward another "
            "node has replaced; remove that node"
        )


def with_attention_override(
    options: Mapping[str, Any], ours: Callable[..., Tensor]
) -> dict[str, Any]:
    """Return options in which ``ours`` is the attention; an override of another pack stays inside.

    Args:
        options: Transformer options; not modified.
        ours: Function that is called with ComfyUI's attention, with the attention to use, which
            includes the other override, and then with ComfyUI's arguments.
    """
    before = options.get(OVERRIDE)

    def override(function: Attention, *args: Any, **kwargs: Any) -> Tensor:
        def attention(*inner: Any, **named: Any) -> Tensor:
            return (
                function(*inner, **named) if before is None else before(function, *inner, **named)
            )

        return ours(function, attention, *args, **kwargs)

    return {**options, OVERRIDE: override}
