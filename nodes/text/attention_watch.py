"""Where a UNet's cross-attention looks at some tokens, while a forward goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layer_contexts import ATTENTION_PATCHES

_OVERRIDE = "optimized_attention_override"


class AttentionWatch:
    """Keeps the attention of one forward to the watched tokens, differentiable.

    The layers' own attention is computed as ever; what is kept is computed beside it, in fp32.

    Args:
        places: Of the watched tokens in each row's context, as many in every row.
    """

    def __init__(self, places: Sequence[Sequence[int]]):
        self._places = torch.tensor([list(row) for row in places])  # (row, word)
        self._shape: tuple[int, int] | None = None
        self._found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self._open = True

    def options(self, transformer_options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options under which a forward is watched.

        Args:
            transformer_options: Of the forward; untouched.
        """
        patches = transformer_options.get("patches", {})
        others = patches.get(ATTENTION_PATCHES, [])
        return {
            **transformer_options,
            "patches": {**patches, ATTENTION_PATCHES: [*others, self._announce]},
            _OVERRIDE: self._attend,
        }

    def maps(self) -> list[Tensor]:
        """Return one map per size of the layers, ``(row, word, h, w)``; the watch is over then."""
        found, self._found, self._open = self._found, defaultdict(list), False
        return [torch.stack(layers).mean(dim=0) for layers in found.values()]

    def _announce(
        self, queries: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The next attention that is computed is this layer's attention to the text.
        height, width = options["activations_shape"][-2:]
        self._shape = (height, width)
        return queries, context, value

    def _attend(
        self,
        attention: Callable[..., Tensor],
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        heads: int,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        shape, self._shape = self._shape, None
        if shape is not None:
            found = self._looked_at(queries, keys, heads, shape)
            if self._open:  # a block that is recomputed comes by a second time
                self._found[shape].append(found)
        return attention(queries, keys, values, heads, *args, **kwargs)

    def _looked_at(
        self, queries: Tensor, keys: Tensor, heads: int, shape: tuple[int, int]
    ) -> Tensor:
        rows, count, width = queries.shape
        split = (heads, width // heads)
        by_head = [part.float().unflatten(2, split).transpose(1, 2) for part in (queries, keys)]
        scores = by_head[0] @ by_head[1].mT * split[1] ** -0.5  # (row, head, query, token)
        places = self._places.to(queries.device).repeat_interleave(rows // len(self._places), 0)
        chosen = places[:, None, None].expand(rows, heads, count, places.shape[1])
        shares = scores.softmax(dim=-1).gather(3, chosen).mean(dim=1)  # (row, query, word)
        return shares.transpose(1, 2).unflatten(2, shape)
