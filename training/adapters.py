"""Adapters during training: named parts per site, trainable or detached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..lora_ops import LowRank, Parametrization
from .gates import Site
from .randomness import generator_for


@dataclass(frozen=True)
class TrainedAdapter:
    """One adapter over all its sites.

    Args:
        parametrization: Parametrisation that converts the parts to factors.
        parts: Tensors by site and part name: parameters if they are learnt, else plain tensors.
        lr_scales: Multipliers of the learning rate by part; 1 for parts without an entry.
        learning_rates: Learning rates by site; the run's for sites without an entry.
    """

    parametrization: Parametrization
    parts: Mapping[str, Mapping[str, Tensor]]
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def learning_rate(self, site: str, part: str, default: float) -> float:
        """Return the learning rate of a site's part, where the run's is ``default``."""
        return self.learning_rates.get(site, default) * self.lr_scales.get(part, 1.0)

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank | None:
        """Return the factors at ``site`` with the frozen parts detached; None at other sites."""
        parts = self.parts.get(site)
        if parts is None:
            return None
        if frozen:
            parts = {
                name: part.detach() if name in frozen else part for name, part in parts.items()
            }
        return self.parametrization.factors(parts)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the learnt parts of every site, in the order of the sites."""
        for parts in self.parts.values():
            for part in parts.values():
                if isinstance(part, nn.Parameter):
                    yield part

    def result(self) -> dict[str, LowRank]:
        """Return the factors of every site, detached, fp32 on the CPU."""
        with torch.no_grad():
            return {
                site: _detached(self.parametrization.factors(parts))
                for site, parts in self.parts.items()
            }


def parameter_groups(
    adapters: Iterable[TrainedAdapter], learning_rate: float
) -> list[dict[str, Any]]:
    """Return all learnt parts as an optimiser's groups, one for every learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for adapter in adapters:
        for site, parts in adapter.parts.items():
            for name, part in parts.items():
                if isinstance(part, nn.Parameter):
                    rate = adapter.learning_rate(site, name, learning_rate)
                    groups.setdefault(rate, []).append(part)
    return [parameter_group(parts, rate) for rate, parts in groups.items()]


def parameter_group(parts: list[nn.Parameter], learning_rate: float) -> dict[str, Any]:
    """Return an optimiser's group; its ``initial_lr`` stays while the schedule moves ``lr``."""
    return {"params": parts, "lr": learning_rate, "initial_lr": learning_rate}


def new_adapter(
    name: str,
    parametrization: Parametrization,
    sites: Mapping[str, Site],
    rank: int,
    seed: int,
    device: torch.device,
    lr_scales: Mapping[str, float] | None = None,
) -> TrainedAdapter:
    """Return an adapter at its initial values, fp32 on ``device``.

    Random values of a site depend only on (seed, adapter name, site name); a parametrisation may
    let parts depend on less, such as a basis. Parts that several sites share remain one tensor.

    Raises:
        ValueError: The rank doesn't fit a site; the message names the site.
    """
    moved: dict[int, Tensor] = {}
    drawn: list[Tensor] = []  # keeps the tensors alive, so that their ids stay unique as keys
    parts: dict[str, dict[str, Tensor]] = {}
    for key, site in sites.items():
        try:
            generator = generator_for(seed, name, key)
            tensors = parametrization.init(site.shape, rank, generator, key)
        except ValueError as error:
            raise ValueError(f"{error} (at layer {key})") from error
        parts[key] = {}
        for part, tensor in tensors.items():
            drawn.append(tensor)
            if part in parametrization.trainable():
                parts[key][part] = nn.Parameter(tensor.to(device, torch.float32))
            else:
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor.to(device, torch.float32)
                parts[key][part] = moved[id(tensor)]
    learning_rates = {
        key: site.learning_rate for key, site in sites.items() if site.learning_rate is not None
    }
    return TrainedAdapter(parametrization, parts, lr_scales or {}, learning_rates)


def _detached(factors: LowRank) -> LowRank:
    return LowRank(
        factors.down.detach().float().cpu().clone(),
        factors.up.detach().float().cpu().clone(),
        factors.alpha,
    )
