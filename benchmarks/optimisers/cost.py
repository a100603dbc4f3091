"""Measure the seconds of a training step and of its optimiser on the toy base."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from pack.training import Session
from pack.training.loop import take_step

from .problems import ProblemFactory, Stopwatch, run_config

WARM_UP = 3
RATE = 1e-6


def measure(
    factory: ProblemFactory, name: str, optimizers: Sequence[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median seconds of a whole step and of its optimiser alone, by optimiser.

    Every round takes one step with each optimiser, so that other load on the machine affects all of
    them equally.
    """
    recipe = factory.problem(name).recipe
    sessions, watches = {}, {}
    for optimizer in optimizers:
        config = run_config(optimizer, RATE, rounds)
        sessions[optimizer] = Session(factory.denoiser, factory.sites, recipe, config)
        watches[optimizer] = Stopwatch(sessions[optimizer])
    steps: dict[str, list[float]] = {optimizer: [] for optimizer in optimizers}
    for _ in range(WARM_UP + rounds):
        for optimizer, session in sessions.items():
            with session.gates.attached():
                started = time.perf_counter()
                take_step(session, recipe)
                steps[optimizer].append(time.perf_counter() - started)
    return {
        optimizer: {
            "step": median(steps[optimizer][WARM_UP:]),
            "optimizer": median(watches[optimizer].laps[WARM_UP:]),
        }
        for optimizer in optimizers
    }
