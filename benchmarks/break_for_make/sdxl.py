"""Measure one break and one make step at SDXL's real widths, in a new process.

``python3 benchmarks/run.py break_for_make --sdxl`` prints one line of JSON.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from pack.lora_ops import PartlyLearnable
from pack.lora_ops.halves import join_halves
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training import Session, TrainingConfig
from pack.training.loop import take_step
from pack.training.recipes import Make
from pack.training.recipes.break_for_make import Half

from ..shared.process_memory import MIB, measure_in_process, peak, reset_peak, resident
from ..shared.real_width import Case, load_base, random_examples

RANK = 64
SIDE = 16  # side of the latent, which is 128 pixels


def measure_in_new_process(threads: int) -> dict[str, Any]:
    """Run the measurement in a new process and return it."""
    # Freed memory is returned at once, so that the resident set is the memory that a step holds.
    # The threshold is below the size of a factor; otherwise factors would reuse memory that loading
    # has freed but not returned.
    memory = {
        "MALLOC_MMAP_THRESHOLD_": str(2**15),
        "MALLOC_TRIM_THRESHOLD_": str(2**15),
        "MALLOC_ARENA_MAX": "1",
    }
    return measure_in_process("break_for_make", ["--sdxl", "--threads", str(threads)], memory)


def measure(threads: int) -> dict[str, Any]:
    """Return seconds and memory in MiB of a step of a half and of the fine-tune."""
    torch.set_num_threads(threads)
    case = Case("SDXL", "bfloat16", SIDE, 4, False)
    model = load_base(case)
    main, *others = random_examples(model, case)
    config = TrainingConfig(2, RANK, 1e-4, seed=0)
    with open_denoiser(model, "bf16", False) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        found: dict[str, Any] = {
            "layers": len(sites),
            "rank": RANK,
            "pixels": 8 * SIDE,
            "threads": threads,
        }
        halves = {}
        for role in ("content", "style"):
            recipe = Half(role, [main], others)
            halves[role], found["break"] = _take_two_steps(denoiser, sites, recipe, config)
        given = join_halves(halves["content"], halves["style"])
        recipe = Make([main], others[:1], PartlyLearnable(given=given))
        scaled = TrainingConfig(2, RANK, 1e-4, seed=0, optimizer="Scaled AdamW")
        made, found["make"] = _take_two_steps(denoiser, sites, recipe, scaled)
    for layer, factors in made.items():
        rows, columns = factors.up.shape[0] // 2, factors.down.shape[1] // 2
        kept = (factors.up[:rows] == given[layer].up[:rows]).all() and (
            factors.down[:, :columns] == given[layer].down[:, :columns]
        ).all()
        if not kept or not math.isfinite(float(factors.up.sum() + factors.down.sum())):
            raise RuntimeError(f"frozen halves must stay and all be finite, got others at {layer}")
    return found


def _take_two_steps(
    denoiser: Any, sites: Any, recipe: Any, config: Any
) -> tuple[dict, dict[str, float]]:
    """Return the factors after two steps, the time of the second, and the growth of memory."""
    reset_peak()
    before = resident()
    session = Session(denoiser, sites, recipe, config)
    step = session.optimizer.step
    spent = [0.0]

    def timed() -> None:
        started = time.perf_counter()
        step()
        spent[0] = time.perf_counter() - started

    session.optimizer.step = timed
    with session.gates.attached():
        take_step(session, recipe)
        started = time.perf_counter()
        take_step(session, recipe)
        seconds = time.perf_counter() - started
    (layers,) = session.trained().adapters.values()
    return layers, {
        "seconds": seconds,
        "optimizer_seconds": spent[0],
        "growth_mib": (peak() - before) / MIB,
    }
