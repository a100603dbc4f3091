"""Estimate the memory of a run by executing one step on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .optimizers.factor_optimizer import FactorOptimizer

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@dataclass(frozen=True)
class MemoryNeed:
    """Number of bytes that a run needs on its device.

    Args:
        weights: Bytes of the base's weights.
        learnt: Bytes of adapters with their gradients, the optimizer's state and the average.
        activations: Bytes of everything else at the peak of a step.
    """

    weights: int
    learnt: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return self.weights + self.learnt + self.activations


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors created inside the block, and their peak.

    Bytes are counted by storage, so views are free; tensors on the meta device count like real
    ones.

    Args:
        known: Tensors that are not counted, such as the base's weights.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # keeps addresses in use
        self._seen = {_address(storage) for storage in self._known}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the function's result and count its new tensors."""
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._count(value)
        # Convolutions work on copies in another memory layout.
        working = _bytes(args) if function in _CONVOLUTIONS else 0
        self.peak = max(self.peak, self.live + working)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = _address(storage)
        if address not in self._seen:
            size = storage.nbytes()
            self._seen.add(address)
            self.live += size
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.live -= size


def _address(storage: torch.UntypedStorage) -> int:
    """Return what names a storage as long as it lives; on the meta device all data is at 0."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in tree_leaves(values) if isinstance(value, Tensor))


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimizer's state in fp32.

    Adafactor keeps a row and a column of each matrix.
    """
    if isinstance(optimizer, FactorOptimizer):
        return optimizer.kept_bytes()
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    if isinstance(optimizer, torch.optim.Adafactor):
        return sum(4 * sum(parameter.shape) for parameter in parameters)
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 0
    return moments * sum(4 * parameter.numel() for parameter in parameters)
