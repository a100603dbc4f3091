"""Scaled SGD and scaled AdamW, which step along the Riemannian gradients of a layer's factors."""

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
from .factor_pairs import FactorPair


class ScaledSGD(FactorOptimizer):
    """Gradient descent along the Riemannian gradient of each factor.

    Without damping the change of ``up @ down`` is the same for all factors of one product.

    Args:
        pairs: The layers.
        lr: Learning rate of both factors.
        weight_decay: Decoupled weight decay.
        damping: Damping of the Gram matrices.
        max_norm: Maximum norm of the gradient in the metric, to which it is clipped; 0 is off.
        warn: Function that receives warnings, each once and as a sentence.

    Reference: Zhang & Pilanci 2024, arXiv:2402.02347, scaled GD.
    """

    def __init__(
        self,
        pairs: Sequence[FactorPair],
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

    def _step(self, pairs: Sequence[FactorPair], group_of: Mapping[int, dict[str, Any]]) -> None:
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
        self, pair: FactorPair, part: nn.Parameter, direction: Tensor, group: dict[str, Any]
    ) -> None:
        move_part(part, direction, group)


class ScaledAdamW(ScaledSGD):
    """AdamW on Riemannian gradients.

    As the factors grow, Riemannian gradients shrink by orders of magnitude, and a slow decay of
    their squares stalls learning from a zero start. On a noisy matrix fit at lr 0.01, a second
    decay rate of 0.999 left an error of 0.36, 0.99 of 0.23, 0.95 of 0.002, and AdamW of 0.025,
    which explains the default of ``betas``. If the other factor is completely frozen, its Gram
    matrix never changes, and ``still_betas`` are those of AdamW: with orthonormal rows, as in Pair
    Customization, the optimizer then equals AdamW.

    The change of the product depends on its factors, because Adam moves every entry by about
    ``lr``. It is independent only of the order and the signs along the rank axis.

    Args:
        pairs: The layers.
        lr: Learning rate of both factors.
        weight_decay: Decoupled weight decay.
        damping: Damping of the Gram matrices.
        betas: Decay rates of both moments if the other factor is learnt.
        still_betas: Decay rates of both moments if the other factor is frozen.
        tiny: Number added to the root of the second moment.
        max_norm: Maximum norm of the gradient in the metric, to which it is clipped; 0 is off.
        warn: Function that receives warnings, each once and as a sentence.

    Reference: Zhang & Pilanci 2024, arXiv:2402.02347, scaled AdamW.
    """

    moments = 2

    def __init__(
        self,
        pairs: Sequence[FactorPair],
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
        self, pair: FactorPair, part: nn.Parameter, direction: Tensor, group: dict[str, Any]
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
