"""Pair a layer's learnt parts with its whole factors, for preconditioned optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ...lora_ops import LowRank
from ...lora_ops.preconditioner import FactorGradients
from ..adapters import TrainedAdapter


@dataclass(frozen=True)
class FactorPair:
    """The learnt parts of one layer together with its present whole factors.

    Args:
        parts: ``down``, columns of its factor, and ``up``, rows of its factor; one may be missing.
        factors: Function that returns the whole factors, frozen halves included.
        learning_rates: Learning rates by part; the optimizer's for parts without an entry.

    Raises:
        ValueError: A learnt part is neither of the two.
    """

    parts: Mapping[str, nn.Parameter]
    factors: Callable[[], LowRank]
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = sorted(self.parts.keys() - {"down", "up"})
        if odd or not self.parts:
            raise ValueError(
                "a preconditioned optimiser must be given the learnt parts down or up of a layer, "
                f"got {', '.join(odd) or 'none'}; choose AdamW"
            )

    def gradients(self) -> FactorGradients:
        """Return the whole factors with the gradients of the learnt parts."""
        factors = self.factors()
        down, up = (self.parts.get(name) for name in ("down", "up"))
        return FactorGradients(
            factors.down.detach(),
            factors.up.detach(),
            None if down is None else down.grad,
            None if up is None else up.grad,
        )

    def learnt(self) -> list[nn.Parameter]:
        """Return the parts that have a gradient, ``down`` first."""
        return [self.parts[n] for n in ("down", "up") if self._has_gradient(n)]

    def _has_gradient(self, name: str) -> bool:
        return name in self.parts and self.parts[name].grad is not None


def factor_pairs(adapters: Iterable[TrainedAdapter], learning_rate: float) -> list[FactorPair]:
    """Return the pairs of adapters, their parts in the order of the adapters' parameters.

    Raises:
        ValueError: A parametrisation learns parts other than columns and rows of its factors.
    """
    return [
        FactorPair(
            {name: part for name, part in parts.items() if isinstance(part, nn.Parameter)},
            lambda kind=adapter.parametrization, parts=parts: kind.factors(parts),
            {name: adapter.learning_rate(site, name, learning_rate) for name in parts},
        )
        for adapter in adapters
        for site, parts in adapter.parts.items()
    ]
