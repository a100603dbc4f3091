"""Exact gradient checkpointing: a network's blocks, recomputed in backward one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed_blocks(blocks: Sequence[nn.Module], in_place: bool) -> Iterator[None]:
    """Keep of each block only its inputs where gradients are wanted; undone at the end.

    A block runs a second time in backward. What decides its result, such as the gates of its rows,
    must still be in force there.

    Args:
        blocks: Blocks of a network, none inside another.
        in_place: Whether they add residuals to their own inputs in place.
    """
    with _wrapped(blocks, lambda forward: _recomputed(forward, in_place)):
        yield


@contextmanager
def out_of_place_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let a network's blocks add residuals to their inputs out of place; undone at the end."""
    with _wrapped(blocks, _out_of_place):
        yield


@contextmanager
def in_place_layers(layers: Sequence[nn.Module], recompute: bool) -> Iterator[None]:
    """Let a text encoder's layers, which add residuals in place, be differentiated; undone after.

    Args:
        layers: Of the encoders.
        recompute: Keep of each layer only its inputs, as ``checkpointed_blocks``.
    """

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return _recomputed(forward, True) if recompute else _out_of_place(forward)

    with _wrapped(layers, wrap):
        yield


@contextmanager
def _wrapped(
    blocks: Sequence[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put a wrapper around the forward of each block, on the module itself."""
    wrapped: list[tuple[nn.Module, Any]] = []
    try:
        for block in blocks:
            wrapped.append((block, block.__dict__.get("forward")))
            block.forward = wrap(block.forward)
        yield
    finally:
        for block, own in wrapped:
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own


def _out_of_place(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        streams = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with _OutOfPlaceResiduals(streams):
            return forward(*args, **kwargs)

    return run


def _recomputed(forward: Callable[..., Any], in_place: bool) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Flattening copies ComfyUI's options, which the network writes the next block's place into.
        leaves, layout = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[place] for place in places]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def block(*values: Tensor) -> Any:
            filled = list(others)
            for place, value in zip(places, values, strict=True):
                filled[place] = value
            given, named = tree_unflatten(filled, layout)
            with _OutOfPlaceResiduals(values) if in_place else nullcontext():
                return forward(*given, **named)

        # No block draws random numbers.
        return checkpoint(block, *tensors, use_reentrant=False, preserve_rng_state=False)

    return run


class _OutOfPlaceResiduals(TorchFunctionMode):
    """Turns ``stream += term`` into ``stream = stream + term`` for a block's inputs and their sums.

    Everything else that writes in place, such as the adapters' hooks, goes on doing so.

    Args:
        streams: The block's inputs.
    """

    def __init__(self, streams: Sequence[Tensor]):
        super().__init__()
        self._streams = {id(stream): stream for stream in streams}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what the function gives, a new tensor where it would overwrite a stream."""
        if function in _ADDS_IN_PLACE and id(args[0]) in self._streams:
            total = torch.add(*args, **(kwargs or {}))
            self._streams[id(total)] = total
            return total
        return function(*args, **(kwargs or {}))


_ADDS_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
