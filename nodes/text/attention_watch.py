"""Record the cross-attention of a UNet to selected tokens during a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layer_contexts import ATTENTION_PATCHES

_OVERRIDE = "optimized_attention_override"


class AttentionWatch:
    """Recorder of one forward pass's attention to the watched tokens; differentiable.

    The layers' own attention is unchanged; the recorded attention is computed in addition, in fp32.

    Args:
        positions: Positions of the watched tokens in each row's context; every row has the same
            number of them.
    """

    def __init__(self, positions: Sequence[Sequence[int]]):
        self._positions = torch.tensor([list(row) for row in positions])  # (row, word)
        self._shape: tuple[int, int] | None = None
        self._maps: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self._open = True

    def options(self, transformer_options: Mapping[str, Any]) -> dict[str, Any]:
        """Return transformer options with which a forward pass is recorded.

        Args:
            transformer_options: Options of the forward pass; not modified.
        """
        patches = transformer_options.get("patches", {})
        others = patches.get(ATTENTION_PATCHES, [])
        return {
            **transformer_options,
            "patches": {**patches, ATTENTION_PATCHES: [*others, self._announce]},
            _OVERRIDE: self._attend,
        }

    def maps(self) -> list[Tensor]:
        """Return one map per layer resolution, ``(row, word, h, w)``, and stop recording."""
        found, self._maps, self._open = self._maps, defaultdict(list), False
        return [torch.stack(layers).mean(dim=0) for layers in found.values()]

    def _announce(
        self, queries: Tensor, context: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The attention that is computed next is this layer's attention to the text.
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
            found = self._attention_to_watched(queries, keys, heads, shape)
            if (
                self._open
            ):  # a checkpointed block is recomputed in backward and must not count twice
                self._maps[shape].append(found)
        return attention(queries, keys, values, heads, *args, **kwargs)

    def _attention_to_watched(
        self, queries: Tensor, keys: Tensor, heads: int, shape: tuple[int, int]
    ) -> Tensor:
        rows, count, width = queries.shape
        split = (heads, width // heads)
        by_head = [part.float().unflatten(2, split).transpose(1, 2) for part in (queries, keys)]
        scores = by_head[0] @ by_head[1].mT * split[1] ** -0.5  # (row, head, query, token)
        positions = self._positions.to(queries.device)
        positions = positions.repeat_interleave(rows // len(positions), 0)
        chosen = positions[:, None, None].expand(rows, heads, count, positions.shape[1])
        probabilities = scores.softmax(dim=-1).gather(3, chosen).mean(dim=1)  # (row, query, word)
        return probabilities.transpose(1, 2).unflatten(2, shape)
