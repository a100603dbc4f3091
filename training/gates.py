"""The one gated-adapter mechanism: low-rank forward hooks, gated per batch row and per token.

Training, style guidance and regions all add low-rank terms to the outputs of untouched modules.
Which rows of a batch get which term is decided by gates that the caller sets around each model
call; outside such a call the hooks do nothing.
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
    """One place that an adapter changes: a module, or a slice of a fused module's output.

    Args:
        module: A linear layer or a convolution of the base model.
        shape: Of the weight that is changed, ``(out, in, ...)``.
        start: First output channel of the slice; ``None`` for the whole output.
        learning_rate: Learning rate of what is learnt here; ``None`` is the run's.
    """

    module: nn.Module
    shape: tuple[int, ...]
    start: int | None = None
    learning_rate: float | None = None

    @property
    def convolution(self) -> dict[str, tuple[int, ...]]:
        """Return stride, padding and dilation of the module, nothing for a linear layer."""
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


class TokenShares(Protocol):
    """How much of an adapter each token of a row gets, layer by layer; told apart by identity."""

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return the shares at ``site`` as ``forward_delta`` takes them, ``None`` for no term.

        Args:
            site: Name of the site.
            output: The layer's output, whose dtype and device the shares have: ``(row, token,
                channel)``, ``(row, channel)``, or ``(row, channel, h, w)`` of a convolution.
        """
        ...


@dataclass(frozen=True)
class Gate:
    """How one row uses one adapter.

    Args:
        strength: Multiplies the adapter's term.
        frozen: Parts whose parameters are detached for this row; gradient still flows through x.
        shares: Multiply each token's and each rank's part of the term; everywhere 1 by default.
        off: Sites at which this row goes without the adapter.
    """

    strength: float = 1.0
    frozen: frozenset[str] = frozenset()
    shares: TokenShares | None = None
    off: frozenset[str] = frozenset()


RowGates = Mapping[str, Gate]
"""Gates of one row by adapter name; an adapter that is not named is off."""


class Adapter(Protocol):
    """Where the hooks get the factors of a site from."""

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank | None:
        """Return the factors at ``site``, or ``None`` where this adapter changes nothing.

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
        """Hold the hooks on the modules; they are removed whatever ends the block."""
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
            if x.shape[0] != len(self._rows) and any(gate.shares for _, gate in groups):
                raise RuntimeError(
                    "a layer must see the call's rows whole where its tokens are told apart, got "
                    f"{x.shape[0]} for {len(self._rows)}; remove the node that tiles the layers"
                )
            # With gradients the base's output may be saved for backward: the sum gets a copy.
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
    """Return the batch indices of every (adapter, gate) in use, as a slice where contiguous.

    A module may see several entries per row (frames, windows): the rows are then repeated in
    place, as the models unfold them.
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
    shares = None
    if gate.shares is not None:
        shares = gate.shares.at(name, total)
        if shares is None:
            return
        shares = shares.to(x.dtype)
    term = forward_delta(x[rows], factors, **site.convolution, shares=shares).to(total.dtype)
    if gate.strength != 1.0:
        term = term * gate.strength
    if site.start is not None:
        channel = 1 if len(site.shape) > 2 else total.ndim - 1
        total = total.narrow(channel, site.start, site.shape[0])
    if isinstance(rows, slice):
        total[rows].add_(term)
    else:
        total.index_add_(0, torch.tensor(rows, device=total.device), term)
