"""Exact gradient checkpointing, which recomputes a network's blocks one at a time in backward."""

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
    """Keep only the inputs of each block for backward; the blocks are restored at the end.

    A block runs a second time in backward. Everything that affects its result, such as the gates of
    its rows, must still be set at that time.

    Args:
        blocks: Blocks of a network, none of them inside another.
        in_place: Whether the blocks add residuals to their own inputs in place.
    """
    with _wrapped(blocks, lambda forward: _recomputed(forward, in_place)):
        yield


@contextmanager
def out_of_place_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make blocks add residuals to their inputs out of place; they are restored at the end."""
    with _wrapped(blocks, _out_of_place):
        yield


@contextmanager
def in_place_layers(layers: Sequence[nn.Module], recompute: bool) -> Iterator[None]:
    """Make a text encoder's layers, which add residuals in place, differentiable inside the block.

    Args:
        layers: Layers of the encoders.
        recompute: Whether layers are recomputed in backward, as in ``checkpointed_blocks``.
    """

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return _recomputed(forward, True) if recompute else _out_of_place(forward)

    with _wrapped(layers, wrap):
        yield


@contextmanager
def _wrapped(
    blocks: Sequence[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward of each module by a wrapped one, and restore it at the end."""
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
        # Flattening copies ComfyUI's options, because the network later writes the position of the
        # next block into the original.
        leaves, layout = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[place] for place in places]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def block(*values: Tensor) -> Any:
            filled = list(others)
            for place, value in zip(places, values, strict=True):
                filled[place] = value
            positional, named = tree_unflatten(filled, layout)
            with _OutOfPlaceResiduals(values) if in_place else nullcontext():
                return forward(*positional, **named)

        # The state of the random generator need not be kept, as no block draws random numbers.
        return checkpoint(block, *tensors, use_reentrant=False, preserve_rng_state=False)

    return run


class _OutOfPlaceResiduals(TorchFunctionMode):
    """Turns ``stream += term`` into ``stream = stream + term`` for inputs of a block.

    The sums are treated like inputs. Other operations in place, such as those of the adapters'
    hooks, are not changed.

    Args:
        streams: Inputs of the block.
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
        """Return the function's result, in a new tensor if it would overwrite a stream."""
        if function in _ADDS_IN_PLACE and id(args[0]) in self._streams:
            total = torch.add(*args, **(kwargs or {}))
            self._streams[id(total)] = total
            return total
        return function(*args, **(kwargs or {}))


_ADDS_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
