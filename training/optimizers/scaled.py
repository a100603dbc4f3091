"""Scaled SGD and scaled AdamW: steps along the Riemannian gradients of a layer's two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...lora_ops.preconditioner import Damping, exact, riemannian_gradients
from .factor_optimizer import (
    DAMPING,
    FactorOptimizer,
    clip_factors,
    move_part,
    parts_with_gradients,
)
from .factor_pairs import LearntPair


class ScaledSGD(FactorOptimizer):
    """Step each factor along its Riemannian gradient.

    With no damping the change of ``up @ down`` is the same for all factors of one product.

    Args:
        pairs: The layers.
        lr: Learning rate, one for both factors.
        weight_decay: Decoupled.
        damping: Of the Grams.
        max_norm: Longer gradients are shortened to it, in the metric; 0 leaves them.
        warn: As in ``FactorOptimizer``.

    Reference: Zhang & Pilanci 2024, arXiv:2402.02347, scaled GD.
    """

    def __init__(
        self,
        pairs: Sequence[LearntPair],
        lr: float,
        weight_decay: float = 0.0,
        damping: Damping = DAMPING,
        max_norm: float = 0.0,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.damping = damping
        super().__init__(
            pairs, warn, {"lr": lr, "weight_decay": weight_decay, "max_norm": max_norm}
        )

    def _step(self, pairs: Sequence[LearntPair], group_of: Mapping[int, dict[str, Any]]) -> None:
        found = riemannian_gradients([pair.gradients() for pair in pairs], self.damping)
        self._say_once(found.singular)
        clips = clip_factors(found.metric_norm, self.param_groups)
        for pair, gradients in zip(pairs, found.gradients, strict=True):
            for part, gradient in parts_with_gradients(pair, gradients):
                group = group_of[id(part)]
                direction, clip = exact(gradient), clips.get(group["max_norm"])
                if clip is not None:
                    direction = direction * clip
                self._move(pair, part, direction, group)

    def _move(
        self, pair: LearntPair, part: nn.Parameter, direction: Tensor, group: dict[str, Any]
    ) -> None:
        move_part(part, direction, group)


class ScaledAdamW(ScaledSGD):
    """AdamW on Riemannian gradients.

    As the factors grow, Riemannian gradients shrink by orders of magnitude, and a long memory of
    their squares stalls learning from a zero start. On a noisy matrix fit at lr 0.01, a second
    decay of 0.999 left an error of 0.36, 0.99 of 0.23, 0.95 of 0.002, AdamW of 0.025: hence
    ``betas``. Where the other factor is frozen whole, its Gram never changes, and ``still_betas``
    are AdamW's own: with orthonormal rows, as Pair Customization's, it then is AdamW.

    Not the same for all factors of one product: Adam moves every entry by about ``lr``. Only the
    order and the signs of the rank axis don't matter.

    Args:
        pairs: The layers.
        lr: Learning rate, one for both factors.
        weight_decay: Decoupled.
        damping: Of the Grams.
        betas: Decay of both moments where the other factor is learnt.
        still_betas: Decay of both where it isn't.
        tiny: Added to the root of the second moment.
        max_norm: Longer gradients are shortened to it, in the metric; 0 leaves them.
        warn: As in ``FactorOptimizer``.

    Reference: Zhang & Pilanci 2024, arXiv:2402.02347, scaled AdamW.
    """

    moments = 2

    def __init__(
        self,
        pairs: Sequence[LearntPair],
        lr: float,
        weight_decay: float = 1e-2,
        damping: Damping = DAMPING,
        betas: tuple[float, float] = (0.9, 0.95),
        still_betas: tuple[float, float] = (0.9, 0.999),
        tiny: float = 1e-8,
        max_norm: float = 0.0,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.betas, self.still_betas, self.tiny = betas, still_betas, tiny
        super().__init__(pairs, lr, weight_decay, damping, max_norm, warn)

    def _move(
        self, pair: LearntPair, part: nn.Parameter, direction: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[part]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(direction)
            state["exp_avg_sq"] = torch.zeros_like(direction)
        state["step"] += 1
        first, second = self.betas if len(pair.parts) == 2 else self.still_betas
        mean = state["exp_avg"].lerp_(direction, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(direction, direction, value=1 - second)
        spread = (square / (1 - second ** state["step"])).sqrt_().add_(self.tiny)
        move_part(
            part, torch.div(mean, spread, out=spread), group, 1 / (1 - first ** state["step"])
        )
