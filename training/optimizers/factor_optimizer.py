"""The base class of optimizers that work on a layer's two factors together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...lora_ops.preconditioner import Damping, exact
from ..adapters import parameter_group
from .factor_pairs import LearntPair

SINGULAR = (
    "a factor has directions that are zero and damping is 0: they are left out of the "
    "preconditioner (pseudo-inverse); set a small damping to learn them too"
)

DAMPING = Damping()
"""A hundredth of each Gram's mean eigenvalue."""


class FactorOptimizer(Optimizer):
    """What the three have in common: pairs, clipping in the metric, decay, exact state.

    A part without a gradient is skipped whole: no step, no decay, no count. Decay is decoupled and
    touches learnt parts alone. Moments are kept in fp32 or better.

    Args:
        pairs: The layers; their parts are the parameters, in order.
        warn: Told once, in a sentence, when a factor is singular and damping is 0.
        defaults: Of the parameter groups; ``lr``, ``weight_decay`` and ``max_norm`` among them.
    """

    clips_in_metric = True
    """Whoever drives it must not clip the gradient by its plain norm."""

    moments = 0
    """Tensors of a part's own size that it keeps of each."""

    def __init__(
        self,
        pairs: Sequence[LearntPair],
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step from the gradients as they are, accumulated or not.

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

    def _step(self, pairs: Sequence[LearntPair], group_of: Mapping[int, dict[str, Any]]) -> None:
        raise NotImplementedError

    def kept_bytes(self) -> int:
        """Return what it keeps of its parts between steps once all have moved, from shapes alone."""
        return 4 * self.moments * sum(part.numel() for p in self.pairs for part in p.parts.values())

    def _say_once(self, singular: int) -> None:
        if singular and self._warn is not None:
            self._warn(SINGULAR)
            self._warn = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state exactly: the base class would round moments to the parameters' dtype."""
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parts = [part for group in self.param_groups for part in group["params"]]
        for number, part in zip(numbers, parts, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    value = value.to(part.device, copy=True)
                self.state[part][name] = value


def parts_with_gradients(
    pair: LearntPair, gradients: tuple[Tensor | None, Tensor | None]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the learnt parts that have a gradient, each with it."""
    named = zip(("down", "up"), gradients, strict=True)
    return [(pair.parts[name], value) for name, value in named if value is not None]


def shortened(norm: Tensor, most: float) -> Tensor:
    """Return the factor that brings a gradient of length ``norm`` to at most ``most``, a scalar."""
    if not most:
        return torch.ones_like(norm)
    return (most / (norm + 1e-6)).clamp_max(1.0)


def clip_factors(norm: Tensor, groups: Sequence[Mapping[str, Any]]) -> dict[float, Tensor]:
    """Return what shortens a gradient of that length, by the ``max_norm`` of groups that have one."""
    return {most: shortened(norm, most) for most in {group["max_norm"] for group in groups} if most}


def move_part(
    part: nn.Parameter, direction: Tensor, group: Mapping[str, Any], times: float = 1.0
) -> None:
    """Decay the part, then step against the direction; rounded to the part's dtype once."""
    kept = 1 - group["lr"] * group["weight_decay"]
    if part.dtype == direction.dtype:
        if kept != 1:
            part.mul_(kept)
        part.sub_(direction, alpha=group["lr"] * times)
    else:
        part.copy_(exact(part) * kept - group["lr"] * times * direction)
