"""Optimisers by name: torch's own, with the pack's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from .config import TrainingConfig


def _adamw(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=config.weight_decay,
    )


def _adafactor(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    return torch.optim.Adafactor(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )


def _sgd(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


OPTIMIZER_MAKERS: dict[str, Callable[[Iterable[nn.Parameter], TrainingConfig], Optimizer]] = {
    "AdamW": _adamw,
    "Adafactor": _adafactor,
    "SGD": _sgd,
}


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """Return the configured optimiser over ``parameters``.

    Every parameter keeps its own moments and step count, so one that gets no gradient in a step
    gets neither momentum nor weight decay, and its bias correction starts at its first update.
    """
    return OPTIMIZER_MAKERS[config.optimizer](parameters, config)
