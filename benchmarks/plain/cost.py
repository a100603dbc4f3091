"""Measure step time and peak memory of one trainer in a new process.

``python3 benchmarks/run.py plain --cost pack`` prints one line of JSON.
"""

from __future__ import annotations

import tempfile
import time

import folder_paths

from ..shared.plain_lora import PlainTraining
from ..shared.process_memory import MIB, measure_in_process, peak, reset_peak, resident
from ..shared.toy_base import ToyBase
from .arms import LEARN

RATE = 1e-3


def measure_in_new_process(arm: str, steps: int, threads: int) -> dict[str, float]:
    """Run the measurement of an arm in a new process and return it."""
    arguments = ["--cost", arm, "--steps", str(steps), "--threads", str(threads)]
    return measure_in_process("plain", arguments)


def measure(base: ToyBase, arm: str, steps: int) -> dict[str, float]:
    """Return seconds per step, from a short and a long training, and memory in MiB.

    Args:
        base: The toy base.
        arm: Name of the trainer.
        steps: Steps of the long training; the short one has a quarter.
    """
    with tempfile.TemporaryDirectory() as output:
        folder_paths.set_output_directory(output)
        # The first training also sets up what torch and ComfyUI keep for the whole process.
        LEARN[arm](base, PlainTraining(2, RATE, 0))
        before = resident()
        reset_peak()
        seconds = []
        for count in (max(1, steps // 4), steps):
            started = time.monotonic()
            LEARN[arm](base, PlainTraining(count, RATE, 1 + count))
            seconds.append(time.monotonic() - started)
    per_step = (seconds[1] - seconds[0]) / (steps - max(1, steps // 4))
    highest = peak()
    return {
        "seconds_per_step": per_step,
        "peak_mib": highest / MIB,
        "growth_mib": (highest - before) / MIB,
    }
