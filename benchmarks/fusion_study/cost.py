"""Seconds and peak memory of a whole fusion on the toy base, measured in a process of its own.

``python3 benchmarks/run.py fusion --cost 8`` prints one line of JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from .process import growing, in_process


def measured(count: int, threads: int) -> dict[str, Any]:
    """Run the measurement of a fusion in a new process and return it."""
    return in_process(["--cost", str(count), "--threads", str(threads)])


def measure(base: Any, concepts: Sequence[Any]) -> dict[str, Any]:
    """Seconds by stage, and the process's memory beyond what it had before, in MiB."""
    import folder_paths
    import torch
    from pack.nodes.fusion.run import fuse

    from .arms import request

    with tempfile.TemporaryDirectory() as output, torch.inference_mode():
        folder_paths.set_output_directory(output)
        fuse(request(base, concepts[:2], steps=1))  # whatever is made once
        with growing() as growth:
            started = time.monotonic()
            done = fuse(request(base, concepts))
            seconds = time.monotonic() - started
    return {
        "concepts": len(concepts),
        "seconds": seconds,
        "growth_mib": growth.beyond / 2**20,
        "peak_mib": growth.highest / 2**20,
        "stages": {
            stage.stage: {
                "collecting": stage.collecting,
                "solving": stage.solving,
                "statistics_mib": stage.statistics / 2**20,
            }
            for stage in done.report.stages
        },
    }
