"""Step time and peak memory of one trainer, measured in a process of its own.

``python3 benchmarks/run.py plain --cost pack`` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "run.py"
RATE = 1e-3


def measured(arm: str, steps: int, threads: int) -> dict[str, float]:
    """Run the measurement of an arm in a new process and return it."""
    command = [sys.executable, str(RUN), "plain", "--cost", arm]
    command += ["--steps", str(steps), "--threads", str(threads)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(base, arm: str, steps: int) -> dict[str, float]:
    """Seconds per step, from a short and a long training, and memory in MiB.

    Args:
        base: The toy base.
        arm: Which trainer.
        steps: Of the long training; the short one has a quarter.
    """
    import folder_paths
    import psutil

    from .arms import LEARN, PlainTraining

    process = psutil.Process()
    with tempfile.TemporaryDirectory() as output:
        folder_paths.set_output_directory(output)
        LEARN[arm](base, PlainTraining(2, RATE, 0))  # whatever is made once
        before = process.memory_info().rss
        _forget_peak()
        seconds = []
        for count in (max(1, steps // 4), steps):
            started = time.monotonic()
            LEARN[arm](base, PlainTraining(count, RATE, 1 + count))
            seconds.append(time.monotonic() - started)
    per_step = (seconds[1] - seconds[0]) / (steps - max(1, steps // 4))
    peak = _peak()
    return {
        "seconds_per_step": per_step,
        "peak_mib": peak / 2**20,
        "growth_mib": (peak - before) / 2**20,
    }


def _forget_peak() -> None:
    """Let the peak of the resident set start anew; Linux alone can."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("peak memory needs Linux's /proc/self/status, got none")
