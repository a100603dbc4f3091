"""Run measurements in new processes, and measure the memory of a process (Linux only)."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parents[1] / "run.py"
MIB = 2**20
# Makes malloc return freed memory at once, so that the resident set is what the process needs.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_ARENA_MAX": "1"}


def measure_in_process(
    study: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> Any:
    """Run a study in a new process and return the JSON value of the last line that it prints.

    Args:
        study: Name of the study.
        arguments: Command-line arguments that make it print a measurement.
        variables: Environment variables of the process, in addition to those of this one.
    """
    finished = subprocess.run(
        [sys.executable, str(RUN), study, *arguments],
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def resident() -> int:
    """Return the resident set size of this process in bytes."""
    return _status("VmRSS")


def peak() -> int:
    """Return the largest resident set size in bytes since ``reset_peak``."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset the peak that ``peak`` returns to the present resident set size."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Linux must report {name} of a process, got none")


@dataclass
class Growth:
    """Growth of the resident set during a measurement.

    Args:
        before: Bytes before the measurement.
        highest: Highest number of bytes so far.
    """

    before: int
    highest: int = 0

    @property
    def increase(self) -> int:
        """Return the highest number of bytes minus the bytes before."""
        return self.highest - self.before

    def lap(self) -> int:
        """Return the growth since the last lap, or since the beginning."""
        highest = peak()
        self.highest = max(self.highest, highest)
        reset_peak()
        return highest - self.before


@contextmanager
def track_growth() -> Iterator[Growth]:
    """Measure the growth of this process's memory inside the block."""
    reset_peak()
    growth = Growth(resident())
    try:
        yield growth
    finally:
        growth.lap()
