"""One model call with regions: which rows it has, and attention in which each token hears its own.

What differs between kinds of network is how the regions' texts reach the attention; what is done
there is the same.
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
from ..layout.places import Places
from .texts import Role, Text, repeated

OVERRIDE = "optimized_attention_override"
"""ComfyUI's slot for a replacement of the attention function."""

Attention = Callable[..., Tensor]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a call that see the same places.

    Args:
        numbers: Of the rows.
        places: Where regions lie in them.
        regional: Whether they hear the regions' texts.
    """

    numbers: tuple[int, ...]
    places: Places
    regional: bool


@dataclass(frozen=True, eq=False)
class Call:
    """One model call.

    Args:
        roles: Of each row.
        groups: All rows, by their places.
        batch: Rows of each conditioning entry: what a text's own rows are counted by.
    """

    roles: tuple[Role, ...]
    groups: tuple[Rows, ...]
    batch: int

    def text(self, row: int, region: int) -> Text | None:
        """Return what a row hears in a region, None for its own prompt."""
        role = self.roles[row]
        return role.texts[region] if role.regional else None

    @property
    def regions(self) -> range:
        """Return the numbers of the regions."""
        return range(len(self.roles[0].texts))


class Listening(Protocol):
    """How the texts of regions reach the attention of one kind of network.

    Args:
        repeats: Whether texts of a call are repeated to a common length.
    """

    repeats: bool

    def attached(self) -> AbstractContextManager[None]:
        """Hold what is needed while the network computes a call that was prepared."""
        ...

    def prepare(
        self, call: Call, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the call's context, its transformer options, and the tokens of each text.

        Args:
            call: The call.
            context: Of the rows, ``(row, token, dim)``.
            options: Transformer options; untouched.

        Returns:
            The tokens are of the global prompt first, then of each region's within the context.
        """
        ...


def mixed_attention(
    call: Call,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    heads: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return cross-attention of all rows, each token hearing the texts of its regions.

    Args:
        call: The call.
        q: ``(row, token, channel)``.
        base: Keys and values of the rows' own prompts, ``(row, text, channel)``.
        regions: Those of each region; None where all rows hear their own prompt in it.
        heads: Of the layer.
        attend: Attention of ``(q, k, v)``.
    """
    _require_rows(call, q)
    parts = [
        _attention(rows, _of(rows, q), base, regions, heads, attend, whole=len(call.groups) == 1)
        for rows in call.groups
    ]
    if len(parts) == 1:
        return parts[0]
    out = torch.empty_like(parts[0][:1].expand(q.shape[0], -1, -1))
    for rows, part in zip(call.groups, parts, strict=True):
        out[list(rows.numbers)] = part
    return out


def mixed_replacement(
    call: Call,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    replacement: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return what another's replacement of a layer makes of each text, mixed token by token.

    It is asked for all rows and tokens at once, as it may count them, and for each text that is
    heard: whatever it does with its attention holds in every region.

    Args:
        call: The call.
        q: ``(row, token, channel)``.
        base: Keys and values of the rows' own prompts, ``(row, text, channel)``.
        regions: Those of each region; None where all rows hear their own prompt in it.
        replacement: Of ``(q, k, v)``.
    """
    _require_rows(call, q)
    plain = replacement(q, *base)
    heard = [rows for rows in call.groups if rows.regional and not rows.places.empty]
    if not heard:
        return plain
    outputs = [None if pair is None else replacement(q, *pair) for pair in regions]
    out = plain.clone()
    for rows in heard:
        grid, frames = rows.places.grid_of(q.shape[1])
        own = [None if output is None else _of(rows, output) for output in outputs]
        mixed = rows.places.heard(grid, frames, plain)
        out[list(rows.numbers)] = mix_outputs(_of(rows, plain), own, mixed)
    return out


def _require_rows(call: Call, q: Tensor) -> None:
    if q.shape[0] != len(call.roles):
        raise RuntimeError(
            "regions must know each row of an attention layer, got "
            f"{q.shape[0]} rows for {len(call.roles)} of the call; remove the node that regroups "
            "the batch"
        )


def _of(rows: Rows, x: Tensor) -> Tensor:
    return x if len(rows.numbers) == x.shape[0] else x[list(rows.numbers)]


def _attention(
    rows: Rows,
    q: Tensor,
    base: KeysValues,
    regions: Sequence[KeysValues | None],
    heads: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    whole: bool,
) -> Tensor:
    def own(pair: KeysValues) -> KeysValues:
        return pair if whole else (_of(rows, pair[0]), _of(rows, pair[1]))

    if rows.places.empty or not rows.regional:
        return attend(q, *own(base))
    grid, frames = rows.places.grid_of(q.shape[1])
    heard = rows.places.heard(grid, frames, q)
    texts = [None if pair is None else own(pair) for pair in regions]
    return regional_attention(q, *own(base), texts, heard, heads=heads, attend=attend)


def text_tokens(call: Call, own: int) -> tuple[int, ...]:
    """Return the tokens of the global prompt and of each region's text in a widened context.

    Args:
        call: The call.
        own: Tokens of the rows' own prompts.
    """
    lengths = [own]
    for region in call.regions:
        texts = [call.text(row, region) for row in range(len(call.roles))]
        spoken = any(text is not None for text in texts)
        tokens = [own if text is None else text.context.shape[-2] for text in texts]
        lengths.append(math.lcm(*tokens) if spoken else 0)
    return tuple(lengths)


def widened(call: Call, context: Tensor, layer: int = 0) -> tuple[Tensor, tuple[int, ...]]:
    """Return the context followed by every region's text, and the tokens of each.

    A region in which every row hears its own prompt adds nothing; a row that does so while others
    don't has its prompt there once more.

    Args:
        call: The call.
        context: ``(row, token, dim)``.
        layer: Whose contexts are read, where a text has one for each.
    """
    parts, lengths = [context], text_tokens(call, context.shape[1])
    for region in call.regions:
        if not lengths[1 + region]:
            continue
        texts = [call.text(row, region) for row in range(len(call.roles))]
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

    What follows the texts was appended by another patch, such as an IP-Adapter's tokens: everyone
    hears it.
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
    """Check, behind a layer that reads the text, that its attention was computed with the regions.

    Args:
        waiting: Whether the layer was announced and its attention has not been met since.

    Raises:
        RuntimeError: Another node computes it where regions don't reach.
    """
    if waiting:
        raise RuntimeError(
            "regions must reach every layer that reads the text, got one whose forward another "
            "node has replaced; remove that node"
        )


def overridden(options: Mapping[str, Any], ours: Callable[..., Tensor]) -> dict[str, Any]:
    """Return options whose attention is ours, over another pack's where there is one.

    Args:
        options: Transformer options; untouched.
        ours: Called with the attention to use, and with what ComfyUI calls it with.
    """
    before = options.get(OVERRIDE)

    def override(function: Attention, *args: Any, **kwargs: Any) -> Tensor:
        def attention(*inner: Any, **named: Any) -> Tensor:
            return (
                function(*inner, **named) if before is None else before(function, *inner, **named)
            )

        return ours(function, attention, *args, **kwargs)

    return {**options, OVERRIDE: override}
