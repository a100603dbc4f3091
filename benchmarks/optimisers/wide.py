"""Time a step of every optimiser on the layers of SDXL, and one forward and backward pass.

``python3 benchmarks/run.py optimisers --wide`` prints one line of JSON.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training import Session, TrainingConfig
from pack.training.loop import take_step
from pack.training.optimizers.by_name import make_optimizer
from pack.training.recipes.single import Single

from ..shared.process_memory import measure_in_process
from ..shared.real_width import Case, load_base, random_examples
from .rates import RATES

RANK, SIDE, REPEATS = 64, 64, 5


def measure_in_new_process(threads: int) -> dict:
    """Run the measurement in a new process, whose memory is free again afterwards."""
    return measure_in_process("optimisers", ["--wide", "--threads", str(threads)])


def measure(threads: int) -> dict:
    """Return the seconds of a forward and backward pass of one row, and of every optimiser's step.

    The base has SDXL's real widths and random weights; the row is a square of 512 pixels.
    """
    torch.set_num_threads(threads)
    case, small = (Case("SDXL", "bfloat16", side, 1, False) for side in (SIDE, 8))
    model = load_base(case)
    recipes = [Single(random_examples(model, one)) for one in (small, case)]
    config = TrainingConfig(9, RANK, 1e-6, 0, optimizer="SGD", weight_decay=0.0)
    with open_denoiser(model, "bf16") as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        session = Session(denoiser, sites, recipes[0], config)
        with session.gates.attached():
            for recipe in recipes:  # the small one warms up
                started = time.perf_counter()
                take_step(session, recipe)
                passes = time.perf_counter() - started
    found = {}
    for part in session.parameters.values():
        part.grad = torch.randn_like(part) * 1e-4
        with torch.no_grad():
            part.add_(torch.randn_like(part) * 1e-2)  # no factor is singular
    for name in RATES:
        fields = {"optimizer": name, "weight_decay": 0.0}
        config = TrainingConfig(9, RANK, 1e-6, 0, **fields)
        stepper = make_optimizer(session.adapters.values(), config)
        stepper.step()
        laps = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            stepper.step()
            laps.append(time.perf_counter() - started)
        found[name] = median(laps)
        del stepper
    learnt = sum(part.numel() for part in session.parameters.values())
    return {
        "layers": len(sites),
        "rank": RANK,
        "numbers": learnt,
        "pixels": 8 * SIDE,
        "passes": passes,
        "optimizers": found,
    }
