"""Optimisers by name: torch's own, with the pack's defaults, and those that need whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from ...lora_ops.preconditioner import Damping
from ..adapters import TrainedAdapter, parameter_groups
from ..config import TrainingConfig
from ..words import LearntWords
from .factor_optimizer import FactorOptimizer
from .factor_pairs import learnt_pairs
from .lora_rite import LoraRite
from .scaled import ScaledAdamW, ScaledSGD

Groups = list[dict[str, Any]]

PRECONDITIONED: dict[str, Callable[..., FactorOptimizer]] = {
    "Scaled SGD": ScaledSGD,
    "Scaled AdamW": ScaledAdamW,
    "LoRA-RITE": LoraRite,
}
"""The optimisers that need whole layers, by the name users see."""


def _adamw(groups: Groups, config: TrainingConfig) -> Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )


def _adafactor(groups: Groups, config: TrainingConfig) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _sgd(groups: Groups, config: TrainingConfig) -> Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


OPTIMIZER_MAKERS: dict[str, Callable[[Groups, TrainingConfig], Optimizer]] = {
    "AdamW": _adamw,
    "Adafactor": _adafactor,
    "SGD": _sgd,
}
"""Those that look at every parameter alone."""


def make_optimizer(
    adapters: Iterable[TrainedAdapter],
    config: TrainingConfig,
    warn: Callable[[str], None] = lambda text: None,
    words: LearntWords | None = None,
) -> Optimizer:
    """Return the configured optimiser over all that is learnt, grouped by learning rate.

    Every parameter keeps its own moments and step count, so one that gets no gradient in a step
    gets neither momentum nor weight decay, and its bias correction starts at its first update.

    Args:
        adapters: Whose parts are learnt.
        config: Of the run.
        warn: Told, once and in a sentence, what a preconditioned optimiser must leave out.
        words: What is learnt of them beside the adapters.

    Raises:
        ValueError: A preconditioned optimiser is chosen for what is no pair of factors.
    """
    embeddings = words.groups(config.learning_rate) if words is not None else []
    if config.optimizer in PRECONDITIONED:
        if embeddings:
            raise ValueError(
                "optimizer must be one that needs no pair of factors where words are learnt, got "
                f"{config.optimizer}; choose {', '.join(OPTIMIZER_MAKERS)}"
            )
        return make_preconditioned(adapters, config, warn)
    groups = [*parameter_groups(adapters, config.learning_rate), *embeddings]
    return OPTIMIZER_MAKERS[config.optimizer](groups, config)


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
        learnt_pairs(adapters, config.learning_rate),
        config.learning_rate,
        weight_decay=config.weight_decay,
        max_norm=config.max_grad_norm,
        warn=warn,
        **damping,
    )
