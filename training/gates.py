"""Gated adapters: forward hooks that add low-rank terms per batch row and per token.

Training, style guidance and regions all add low-rank terms to the outputs of unchanged modules.
Gates, which the caller sets around each model call, select the terms of each row of the batch;
outside such a call the hooks do nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..lora_ops import LowRank, forward_delta


@dataclass(frozen=True)
class Site:
    """A layer that an adapter changes: a module, or a slice of a fused module's output.

    Args:
        module: A linear layer or a convolution of the base model.
        shape: Shape of the weight that is changed, ``(out, in, ...)``.
        start: First output channel of the slice; ``None`` for the whole output.
        learning_rate: Learning rate of the adapter at this site; ``None`` is the run's.
    """

    module: nn.Module
    shape: tuple[int, ...]
    start: int | None = None
    learning_rate: float | None = None

    @property
    def convolution(self) -> dict[str, tuple[int, ...]]:
        """Return stride, padding and dilation of the module; empty for a linear layer."""
        if len(self.shape) == 2:
            return {}
        return {name: getattr(self.module, name) for name in ("stride", "padding", "dilation")}


@dataclass(frozen=True)
class Layer:
    """A layer by its path: the same in a network and in every copy of it.

    Args:
        path: Module path below the network.
        shape: Shape of the weight that is changed, ``(out, in, ...)``.
        start: First output channel of a slice; ``None`` for the whole output.
        learning_rate: Learning rate of what is learnt here; ``None`` is the run's.
    """

    path: str
    shape: tuple[int, ...]
    start: int | None = None
    learning_rate: float | None = None

    def on(self, network: nn.Module) -> Site:
        """Return the layer's site in a network."""
        module = network.get_submodule(self.path)
        return Site(module, self.shape, self.start, self.learning_rate)


class TokenWeights(Protocol):
    """Per-token weights of an adapter, layer by layer; compared by identity."""

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return the weights at ``site`` in the form of ``forward_delta``, or None for no term.

        Args:
            site: Name of the site.
            output: The layer's output, which determines dtype and device of the weights: ``(row,
                token, channel)``, ``(row, channel)``, or ``(row, channel, h, w)`` of a convolution.
        """
        ...


@dataclass(frozen=True)
class Gate:
    """The settings with which one row uses one adapter.

    Args:
        strength: Multiplier of the adapter's term.
        frozen: Parts whose parameters are detached for this row; gradients still flow through x.
        token_weights: Weights of the term by token and rank; 1 everywhere by default.
        off: Sites at which this row does not use the adapter.
    """

    strength: float = 1.0
    frozen: frozenset[str] = frozenset()
    token_weights: TokenWeights | None = None
    off: frozenset[str] = frozenset()


RowGates = Mapping[str, Gate]  # gates of one row by adapter name; adapters that are missing are off


class Adapter(Protocol):
    """The source of a site's factors for the hooks."""

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank | None:
        """Return the factors at ``site``, or None if this adapter does not change it.

        Args:
            site: Name of the site.
            frozen: Parts to detach.
            like: The layer's input; factors may come in its dtype and device.
        """
        ...


@dataclass
class GatedAdapters:
    """Forward hooks on the sites' modules that add each row's adapters to the output.

    Args:
        sites: Sites by name.
        adapters: Adapters by name.
    """

    sites: Mapping[str, Site]
    adapters: Mapping[str, Adapter]
    _rows: Sequence[RowGates] | None = field(default=None, init=False)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the hooks to the modules inside the block, and remove them at its end."""
        by_module: dict[nn.Module, list[tuple[str, Site]]] = defaultdict(list)
        for name, site in self.sites.items():
            by_module[site.module].append((name, site))
        handles = []
        try:
            for module, here in by_module.items():
                handles.append(module.register_forward_hook(self._hook(here)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def gated(self, rows: Sequence[RowGates]) -> Iterator[None]:
        """Apply ``rows``, one entry per row of the batch, to the model call inside the block."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def _hook(self, here: list[tuple[str, Site]]):
        def add_terms(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._rows is None:
                return output
            x = args[0]
            groups = _groups(self._rows, x.shape[0])
            if x.shape[0] != len(self._rows) and any(gate.token_weights for _, gate in groups):
                raise RuntimeError(
                    "a layer must see the call's rows whole where its tokens are told apart, got "
                    f"{x.shape[0]} for {len(self._rows)}; remove the node that tiles the layers"
                )
            # With gradients the base's output may be saved for backward, so the sum uses a copy.
            total = output.clone() if groups and torch.is_grad_enabled() else output
            for name, site in here:
                for (adapter_name, gate), rows in groups.items():
                    if name in gate.off:
                        continue
                    factors = self.adapters[adapter_name].factors(name, gate.frozen, x)
                    if factors is not None:
                        _add_term(total, x, rows, factors, gate, name, site)
            return total

        return add_terms


def _groups(rows: Sequence[RowGates], batch: int) -> dict[tuple[str, Gate], slice | list[int]]:
    """Return the batch indices of every (adapter, gate) in use, as a slice if contiguous.

    A module may receive several entries per row (frames, windows). The rows are then repeated in
    place, in the order in which the models unfold them.
    """
    if not rows or batch % len(rows):
        raise RuntimeError(
            f"a layer's batch must be a multiple of the call's rows, got {batch} for {len(rows)}; "
            "this model regroups its batch in a way that gated adapters don't support"
        )
    repeat = batch // len(rows)
    indices: dict[tuple[str, Gate], list[int]] = defaultdict(list)
    for row, gates in enumerate(rows):
        for name, gate in gates.items():
            if gate.strength != 0:
                indices[name, gate].extend(range(row * repeat, (row + 1) * repeat))
    return {
        key: slice(where[0], where[-1] + 1) if where[-1] - where[0] + 1 == len(where) else where
        for key, where in indices.items()
    }


def _add_term(
    total: Tensor,
    x: Tensor,
    rows: slice | list[int],
    factors: LowRank,
    gate: Gate,
    name: str,
    site: Site,
) -> None:
    rank_weights = None
    if gate.token_weights is not None:
        rank_weights = gate.token_weights.at(name, total)
        if rank_weights is None:
            return
        rank_weights = rank_weights.to(x.dtype)
    term = forward_delta(x[rows], factors, **site.convolution, rank_weights=rank_weights).to(
        total.dtype
    )
    if gate.strength != 1.0:
        term = term * gate.strength
    if site.start is not None:
        outputs, *inputs = site.shape
        channel = 1 if len(inputs) > 1 else total.ndim - 1
        total = total.narrow(channel, site.start, outputs)
    if isinstance(rows, slice):
        total[rows].add_(term)
    else:
        total.index_add_(0, torch.tensor(rows, device=total.device), term)
