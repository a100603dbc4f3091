"""Base class of optimizers that update both factors of a layer jointly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...lora_ops.preconditioner import Damping, exact
from ..adapters import parameter_group
from .factor_pairs import FactorPair

SINGULAR = (
    "a factor has directions that are zero and damping is 0: they are left out of the "
    "preconditioner (pseudo-inverse); set a small damping to learn them too"
)

DAMPING = Damping()  # 0.01 of each Gram's mean eigenvalue


class FactorOptimizer(Optimizer):
    """Base class with pairs of factors, clipping in the metric, weight decay and exact state.

    A part without a gradient is skipped: it gets no step and no decay, and its step count stays.
    Decay is decoupled and affects only learnt parts. Moments are kept in fp32 or better.

    Args:
        pairs: The layers, whose parts are the parameters in this order.
        warn: Function that receives one warning if a factor is singular and damping is 0.
        defaults: Defaults of the parameter groups, with ``lr``, ``weight_decay`` and ``max_norm``.
    """

    clips_in_metric = True  # the training loop must not clip the gradient by its plain norm
    moments = 0  # number of state tensors that have the size of their part

    def __init__(
        self,
        pairs: Sequence[FactorPair],
        warn: Callable[[str], None],
        defaults: dict[str, Any],
    ):
        for name in ("lr", "weight_decay", "max_norm"):
            if not defaults[name] >= 0:
                raise ValueError(f"{name} must be at least 0, got {defaults[name]}; raise it")
        self.pairs = tuple(pairs)
        self._warn: Callable[[str], None] | None = warn
        groups: dict[float, list[nn.Parameter]] = {}
        for pair in self.pairs:
            for name, part in pair.parts.items():
                rate = pair.learning_rates.get(name, defaults["lr"])
                groups.setdefault(rate, []).append(part)
        super().__init__([parameter_group(g, rate) for rate, g in groups.items()], defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> NoReturn: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step along the present gradients.

        Raises:
            ValueError: A closure is given: the factors must not change while a step is computed.
        """
        if closure is not None:
            raise ValueError(
                "a preconditioned step must be given no closure, got one; leave it out"
            )
        pairs = [pair for pair in self.pairs if pair.learnt()]
        if pairs:
            group_of = {id(part): group for group in self.param_groups for part in group["params"]}
            self._step(pairs, group_of)

    def _step(self, pairs: Sequence[FactorPair], group_of: Mapping[int, dict[str, Any]]) -> None:
        raise NotImplementedError

    def kept_bytes(self) -> int:
        """Return the bytes of the state after every part was updated, computed from shapes."""
        return 4 * self.moments * sum(part.numel() for p in self.pairs for part in p.parts.values())

    def _say_once(self, singular: int) -> None:
        if singular and self._warn is not None:
            self._warn(SINGULAR)
            self._warn = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state exactly; the base class would round moments to the parameters' dtype."""
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parts = [part for group in self.param_groups for part in group["params"]]
        for number, part in zip(numbers, parts, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    value = value.to(part.device, copy=True)
                self.state[part][name] = value


def parts_with_gradients(
    pair: FactorPair, gradients: tuple[Tensor | None, Tensor | None]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the learnt parts that have a gradient, each with its gradient."""
    named = zip(("down", "up"), gradients, strict=True)
    return [(pair.parts[name], value) for name, value in named if value is not None]


def clip_factor(norm: Tensor, most: float) -> Tensor:
    """Return the factor that clips a gradient of norm ``norm`` to ``most``, a scalar."""
    if not most:
        return torch.ones_like(norm)
    return (most / (norm + 1e-6)).clamp_max(1.0)


def clip_factors(norm: Tensor, groups: Sequence[Mapping[str, Any]]) -> dict[float, Tensor]:
    """Return the clip factor of a gradient by each ``max_norm`` of the groups."""
    return {
        most: clip_factor(norm, most) for most in {group["max_norm"] for group in groups} if most
    }


def move_part(
    part: nn.Parameter, direction: Tensor, group: Mapping[str, Any], times: float = 1.0
) -> None:
    """Apply decay and a step against the direction, with a single rounding to the part's dtype."""
    kept = 1 - group["lr"] * group["weight_decay"]
    if part.dtype == direction.dtype:
        if kept != 1:
            part.mul_(kept)
        part.sub_(direction, alpha=group["lr"] * times)
    else:
        part.copy_(exact(part) * kept - group["lr"] * times * direction)
