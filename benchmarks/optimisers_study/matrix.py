"""The matrix problem: a low-rank matrix of uneven directions, learnt from noisy gradients."""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch
from pack.lora_ops import Plain
from pack.training import Site
from pack.training.adapters import new_adapter
from pack.training.optimizers.by_name import make_optimizer
from torch import nn

from .problems import run_config

OUT, IN, RANK, BATCH = 96, 128, 8, 32
CONDITION = 30.0
"""The target's largest singular value over its smallest; the largest is 1."""


def course(optimizer: str, rate: float, steps: int, every: int) -> dict[str, list]:
    """Relative squared error of the product and the seconds so far, every so many steps.

    A step sees ``BATCH`` random inputs and what the target makes of them, with a hundredth of
    noise; the factors start as a plain LoRA's, ``up`` at zero. A run whose product is no number
    any more ends.
    """
    generator = torch.Generator().manual_seed(0)
    target = _target(generator)
    site = Site(nn.Linear(IN, OUT, bias=False).requires_grad_(False), (OUT, IN))
    adapter = new_adapter("lora", Plain(), {"layer": site}, RANK, 0, torch.device("cpu"))
    stepper = make_optimizer([adapter], run_config(optimizer, rate, steps))
    found: dict[str, list] = {"steps": [], "seconds": [], "losses": []}
    seconds = 0.0
    for step in range(steps + 1):
        factors = adapter.parametrization.factors(adapter.parts["layer"])
        if step % every == 0:
            error = (factors.up @ factors.down - target).square().sum() / target.square().sum()
            if not error.isfinite():
                break
            for key, value in zip(found, (step, seconds, error.item()), strict=True):
                found[key].append(value)
        drawn = SimpleNamespace(
            inputs=torch.randn(IN, BATCH, generator=generator),
            noise=0.01 * torch.randn(OUT, BATCH, generator=generator),
        )
        started = time.perf_counter()
        seen = target @ drawn.inputs + drawn.noise
        stepper.zero_grad()
        loss = (factors.up @ (factors.down @ drawn.inputs) - seen).square().sum() / (2 * BATCH)
        loss.backward()
        try:
            stepper.step()
        except RuntimeError as error:
            if "finite number" not in str(error):
                raise
            break
        seconds += time.perf_counter() - started
    return found


def _target(generator: torch.Generator) -> torch.Tensor:
    """A matrix of rank ``RANK`` whose singular values fall evenly on a log scale."""
    left = torch.linalg.qr(torch.randn(OUT, RANK, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(IN, RANK, generator=generator)).Q
    values = torch.logspace(0, -1, RANK, base=CONDITION)
    return (left * values) @ right.T
