"""Inject region prompts into transformers with cross-attention.

The texts of all regions are concatenated, and each layer splits its keys and values again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .call import (
    Attention,
    RegionalCall,
    mixed_attention,
    require_reached,
    split_texts,
    widened_context,
    with_attention_override,
)


class CrossAttentionBackend:
    """Backend for cross-attention whose text is embedded once per call, as in Wan.

    Args:
        layers: The cross-attention modules.
    """

    repeats = True

    def __init__(self, layers: Sequence[nn.Module]):
        self._layers = layers
        self._announced = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach hooks that announce each cross-attention layer and check it after its forward."""
        self._announced = False
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(self._announce).remove)
                stack.callback(layer.register_forward_hook(self._check).remove)
            yield

    def prepare(
        self, call: RegionalCall, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the context with all texts, and options whose attention splits them again."""
        whole, lengths = widened_context(call, context)

        def ours(
            function: Attention,
            attention: Attention,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            heads: int,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            announced, self._announced = self._announced, False
            if not announced:
                return attention(q, k, v, heads, *args, **kwargs)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return attention(q, k, v, heads, *args, **kwargs)

            base, regions = split_texts(k, v, lengths)
            return mixed_attention(call, q, base, regions, heads, attend)

        return whole, with_attention_override(options, ours), lengths

    def _announce(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._announced = True

    def _check(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        require_reached(self._announced)
