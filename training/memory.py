"""What a run holds in memory: counted over a step that is rehearsed without numbers."""

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
    """Bytes that a run needs on its device.

    Args:
        weights: Of the base.
        learnt: Adapters with their gradients, the optimiser's state and the average.
        activations: All else at the highest point of a step.
    """

    weights: int
    learnt: int
    activations: int

    @property
    def total(self) -> int:
        """Return all of it together."""
        return self.weights + self.learnt + self.activations


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block that are alive, and their peak.

    It counts by storage, so views cost nothing; tensors on the meta device count as real ones.

    Args:
        known: Tensors that count nothing, such as the base's weights.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # keeps their addresses taken
        self._seen = {storage._cdata for storage in self._known}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what the function gives and count the tensors that are new."""
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._count(value)
        # Convolutions work on copies in a layout of their own.
        working = _bytes(args) if function in _CONVOLUTIONS else 0
        self.peak = max(self.peak, self.live + working)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._seen:
            size = storage.nbytes()
            self._seen.add(address)
            self.live += size
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.live -= size


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in tree_leaves(values) if isinstance(value, Tensor))


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Return what an optimiser keeps of its parameters between steps, in fp32.

    Adafactor keeps a row and a column of each matrix.
    """
    if isinstance(optimizer, FactorOptimizer):
        return optimizer.kept_bytes()
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    if isinstance(optimizer, torch.optim.Adafactor):
        return sum(4 * sum(parameter.shape) for parameter in parameters)
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 0
    return moments * sum(4 * parameter.numel() for parameter in parameters)
