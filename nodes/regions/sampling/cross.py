"""Regions in transformers with cross-attention: texts behind each other, parted in each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .call import (
    Attention,
    Call,
    mixed_attention,
    overridden,
    require_reached,
    split_texts,
    widened,
)


class CrossListening:
    """How the texts of regions reach cross-attention whose text is embedded once, as in Wan.

    Args:
        layers: The cross-attention modules.
    """

    repeats = True

    def __init__(self, layers: Sequence[nn.Module]):
        self._layers = layers
        self._announced = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks that announce a cross-attention layer, and look behind it."""
        self._announced = False
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(self._announce).remove)
                stack.callback(layer.register_forward_hook(self._behind).remove)
            yield

    def prepare(
        self, call: Call, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the context with all texts, and options whose cross-attention parts them."""
        whole, lengths = widened(call, context)

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

        return whole, overridden(options, ours), lengths

    def _announce(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._announced = True

    def _behind(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        require_reached(self._announced)
