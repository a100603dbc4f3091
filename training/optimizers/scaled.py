"""Optimisers that look at a layer's two factors together: scaled SGD, scaled AdamW, LoRA-RITE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...lora_ops.lora_rite import RiteState, rite_steps, unmagnified
from ...lora_ops.preconditioner import Damping, exact, riemannian_gradients
from ..adapters import TrainedAdapter
from ..config import TrainingConfig
from .factor_pairs import LearntPair, learnt_pairs

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
                groups.setdefault(pair.rates.get(name, 1.0), []).append(part)
        super().__init__([{"params": g, "rate": rate} for rate, g in groups.items()], defaults)

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
        clips = _clips(found.metric_norm, self.param_groups)
        for pair, gradients in zip(pairs, found.gradients, strict=True):
            for part, gradient in _with_parts(pair, gradients):
                group = group_of[id(part)]
                direction, clip = exact(gradient), clips.get(group["max_norm"])
                if clip is not None:
                    direction = direction * clip
                self._move(pair, part, direction, group)

    def _move(
        self, pair: LearntPair, part: nn.Parameter, direction: Tensor, group: dict[str, Any]
    ) -> None:
        _take(part, direction, group)


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
        _take(part, torch.div(mean, spread, out=spread), group, 1 / (1 - first ** state["step"]))


class LoraRite(FactorOptimizer):
    """Step adaptively and the same for all factors of one product, whatever their shape.

    Args:
        pairs: The layers.
        lr: Learning rate, one for both factors.
        weight_decay: Decoupled.
        betas: Decay of both moments.
        tiny: Added to the root of the second moment.
        max_norm: Longer gradients are shortened to it, in the metric; 0 leaves them.
        warn: As in ``FactorOptimizer``.

    Reference: Yen et al. 2024, arXiv:2410.20625.
    """

    moments = 1

    def __init__(
        self,
        pairs: Sequence[LearntPair],
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

    def _step(self, pairs: Sequence[LearntPair], group_of: Mapping[int, dict[str, Any]]) -> None:
        sides = [side for pair in pairs for side in _sides(pair)]
        found, _ = unmagnified([side.gradient for side in sides], [side.other for side in sides])
        norm = torch.stack([torch.linalg.vector_norm(one.gradient) for one in found]).norm()
        groups = [group_of[id(side.part)] for side in sides]
        clips = _clips(norm, self.param_groups)
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
            _take(side.part, side.restored(step), group)

    def kept_bytes(self) -> int:
        """Return what it keeps: bases are as large as the whole other factors."""
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


def _sides(pair: LearntPair) -> list[_Side]:
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


def _with_parts(
    pair: LearntPair, gradients: tuple[Tensor | None, Tensor | None]
) -> list[tuple[nn.Parameter, Tensor]]:
    named = zip(("down", "up"), gradients, strict=True)
    return [(pair.parts[name], value) for name, value in named if value is not None]


def shortened(norm: Tensor, most: float) -> Tensor:
    """Return the factor that brings a gradient of length ``norm`` to at most ``most``, a scalar."""
    if not most:
        return torch.ones_like(norm)
    return (most / (norm + 1e-6)).clamp_max(1.0)


def _clips(norm: Tensor, groups: Sequence[Mapping[str, Any]]) -> dict[float, Tensor]:
    """Return what shortens a gradient of that length, by the ``max_norm`` of groups that have one."""
    return {most: shortened(norm, most) for most in {group["max_norm"] for group in groups} if most}


def _take(
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


PRECONDITIONED: dict[str, Callable[..., FactorOptimizer]] = {
    "Scaled SGD": ScaledSGD,
    "Scaled AdamW": ScaledAdamW,
    "LoRA-RITE": LoraRite,
}
"""The optimisers that need whole layers, by the name users see."""


def make_preconditioned(
    adapters: Iterable[TrainedAdapter],
    config: TrainingConfig,
    warn: Callable[[str], None] = lambda text: None,
) -> FactorOptimizer:
    """Return the run's optimiser over all layers, with its rate, decay and clip.

    Args:
        adapters: Whose layers are learnt; their parameters come in their order.
        config: Of the run; its optimiser is one of ``PRECONDITIONED``.
        warn: As in ``FactorOptimizer``.

    Raises:
        ValueError: A parametrisation learns something else than columns and rows of its factors.
    """
    make = PRECONDITIONED[config.optimizer]
    damping = {} if make is LoraRite else {"damping": Damping(config.damping)}
    return make(
        learnt_pairs(adapters),
        config.learning_rate,
        weight_decay=config.weight_decay,
        max_norm=config.max_grad_norm,
        warn=warn,
        **damping,
    )
