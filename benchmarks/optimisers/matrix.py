"""The matrix problem: fit an ill-conditioned low-rank matrix from noisy gradients."""

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
CONDITION = 30.0  # largest singular value of the target over its smallest; the largest is 1


def error_curve(optimizer: str, rate: float, steps: int, every: int) -> dict[str, list]:
    """Return steps, elapsed seconds and relative squared errors of the product, every few steps.

    A step sees ``BATCH`` random inputs and the target's outputs for them with noise of standard
    deviation 0.01. The factors start like those of a plain LoRA, with ``up`` at zero. The run ends
    when the product is no longer finite.

    Args:
        optimizer: Name of the optimiser.
        rate: Learning rate.
        steps: Number of steps.
        every: Number of steps between two entries.
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
    """Return a matrix of rank ``RANK`` whose singular values are evenly spaced on a log scale."""
    left = torch.linalg.qr(torch.randn(OUT, RANK, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(IN, RANK, generator=generator)).Q
    values = torch.logspace(0, -1, RANK, base=CONDITION)
    return (left * values) @ right.T
