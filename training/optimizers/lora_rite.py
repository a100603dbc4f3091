"""The LoRA-RITE optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...lora_ops.lora_rite import RiteState, rite_steps, unmagnified
from .factor_optimizer import FactorOptimizer, clip_factors, move_part
from .factor_pairs import FactorPair


class LoraRite(FactorOptimizer):
    """Adaptive optimizer whose change of the product is the same for all of its factorisations.

    Args:
        pairs: The layers.
        lr: Learning rate of both factors.
        weight_decay: Decoupled weight decay.
        betas: Decay rates of both moments.
        tiny: Number added to the root of the second moment.
        max_norm: Maximum norm of the gradient in the metric, to which it is clipped; 0 is off.
        warn: Function that receives warnings, each once and as a sentence.

    Reference: Yen et al. 2024, arXiv:2410.20625.
    """

    moments = 1

    def __init__(
        self,
        pairs: Sequence[FactorPair],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        tiny: float = 1e-8,
        max_norm: float = 0.0,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.betas, self.tiny = betas, tiny
        super().__init__(
            pairs, warn, {"lr": lr, "weight_decay": weight_decay, "max_norm": max_norm}
        )

    def _step(self, pairs: Sequence[FactorPair], group_of: Mapping[int, dict[str, Any]]) -> None:
        sides = [side for pair in pairs for side in _sides(pair)]
        found, _ = unmagnified([side.gradient for side in sides], [side.other for side in sides])
        norm = torch.stack([torch.linalg.vector_norm(one.gradient) for one in found]).norm()
        groups = [group_of[id(side.part)] for side in sides]
        clips = clip_factors(norm, self.param_groups)
        for one, group in zip(found, groups, strict=True):
            if group["max_norm"] in clips:
                one.gradient.mul_(clips[group["max_norm"]])
        states = [_rite_state(self.state[side.part]) for side in sides]
        steps = rite_steps(found, states, betas=self.betas, tiny=self.tiny)
        for side, group, (step, state) in zip(sides, groups, steps, strict=True):
            self.state[side.part].update(
                step=state.steps,
                first=state.first,
                second=state.second.clone(),
                escaped=state.escaped.clone(),
                basis=state.basis,
            )
            move_part(side.part, side.restored(step), group)

    def kept_bytes(self) -> int:
        """Return the bytes of the state, in which bases have the size of the other factors."""
        numbers = 0
        for pair in self.pairs:
            factors = pair.factors()
            others = {"down": factors.up, "up": factors.down}
            numbers += sum(others[name].numel() + factors.rank**2 for name in pair.parts)
        return super().kept_bytes() + 4 * numbers


@dataclass(frozen=True)
class _Side:
    """One learnt part with its rank axis last, and the other factor with its rank axis first."""

    part: nn.Parameter
    axis: int
    gradient: Tensor
    other: Tensor

    def restored(self, step: Tensor) -> Tensor:
        """Return a step of shape ``(rows, rank)`` in the part's own shape."""
        moved = self.part.movedim(self.axis, -1)
        return step.view(moved.shape).movedim(-1, self.axis)


def _sides(pair: FactorPair) -> list[_Side]:
    found = pair.gradients()
    sides = []
    for name, gradient, axis, other in (
        ("down", found.grad_down, 0, found.up.movedim(1, 0)),
        ("up", found.grad_up, 1, found.down),
    ):
        if gradient is not None:
            rows = gradient.movedim(axis, -1).flatten(0, -2)
            sides.append(_Side(pair.parts[name], axis, rows, other.flatten(1)))
    return sides


def _rite_state(state: Mapping[str, Any]) -> RiteState | None:
    if not state:
        return None
    return RiteState(
        state["first"], state["second"], state["escaped"], state["basis"], int(state["step"])
    )
