"""Measure seconds and peak memory of a whole fusion on the toy base, in a new process.

``python3 benchmarks/run.py fusion --cost 8`` prints one line of JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import folder_paths
import torch
from pack.nodes.fusion.run import fuse

from ..shared.process_memory import MIB, RETURN_FREED_MEMORY, measure_in_process, track_growth
from .arms import fusion_request


def measure_in_new_process(count: int, threads: int) -> dict[str, Any]:
    """Run the measurement of a fusion in a new process and return it."""
    arguments = ["--cost", str(count), "--threads", str(threads)]
    return measure_in_process("fusion", arguments, RETURN_FREED_MEMORY)


def measure(base: Any, concepts: Sequence[Any]) -> dict[str, Any]:
    """Return seconds by stage, the peak of the process's memory and its growth, in MiB."""
    with tempfile.TemporaryDirectory() as output, torch.inference_mode():
        folder_paths.set_output_directory(output)
        # The first fusion also sets up what torch and ComfyUI keep for the whole process.
        fuse(fusion_request(base, concepts[:2], steps=1))
        with track_growth() as growth:
            started = time.monotonic()
            done = fuse(fusion_request(base, concepts))
            seconds = time.monotonic() - started
    return {
        "concepts": len(concepts),
        "seconds": seconds,
        "growth_mib": growth.increase / MIB,
        "peak_mib": growth.highest / MIB,
        "stages": {
            stage.stage: {
                "collecting": stage.collecting_seconds,
                "solving": stage.solving_seconds,
                "statistics_mib": stage.statistics_bytes / MIB,
            }
            for stage in done.report.stages
        },
    }
