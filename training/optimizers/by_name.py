"""Create optimizers by name: torch's own with this pack's defaults, and preconditioned ones."""

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
from .factor_pairs import factor_pairs
from .lora_rite import LoraRite
from .scaled import ScaledAdamW, ScaledSGD

Groups = list[dict[str, Any]]

# Optimizers that need both factors of a layer, by their name in the interface.
PRECONDITIONED: dict[str, Callable[..., FactorOptimizer]] = {
    "Scaled SGD": ScaledSGD,
    "Scaled AdamW": ScaledAdamW,
    "LoRA-RITE": LoraRite,
}


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


# Optimizers that update every parameter independently.
OPTIMIZER_MAKERS: dict[str, Callable[[Groups, TrainingConfig], Optimizer]] = {
    "AdamW": _adamw,
    "Adafactor": _adafactor,
    "SGD": _sgd,
}


def make_optimizer(
    adapters: Iterable[TrainedAdapter],
    config: TrainingConfig,
    warn: Callable[[str], None] = lambda text: None,
    words: LearntWords | None = None,
) -> Optimizer:
    """Return the configured optimizer over all learnt parameters, grouped by learning rate.

    Every parameter has its own moments and step count. A parameter without a gradient in a step
    gets neither momentum nor weight decay, and its bias correction starts at its first update.

    Args:
        adapters: Adapters with the parts to train.
        config: Configuration of the run.
        warn: Function that receives warnings of a preconditioned optimizer, each once.
        words: Embeddings that are trained together with the adapters.

    Raises:
        ValueError: A preconditioned optimizer is chosen for parameters that are not pairs of
            factors.
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
    """Return the run's preconditioned optimizer with learning rate, decay and clipping.

    Args:
        adapters: Adapters with the layers to train; parameters are in the order of the adapters.
        config: Configuration of the run, whose optimizer is one of ``PRECONDITIONED``.
        warn: Function that receives warnings, each once and as a sentence.

    Raises:
        ValueError: A parametrisation learns parts other than columns and rows of its factors.
    """
    make = PRECONDITIONED[config.optimizer]
    damping = {} if make is LoraRite else {"damping": Damping(config.damping)}
    return make(
        factor_pairs(adapters, config.learning_rate),
        config.learning_rate,
        weight_decay=config.weight_decay,
        max_norm=config.max_grad_norm,
        warn=warn,
        **damping,
    )
