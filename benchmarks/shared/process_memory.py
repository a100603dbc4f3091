"""Measurements in processes of their own, and the memory that a process holds (Linux only)."""

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
# Freed memory goes back at once, so that the resident set is what the process needs.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_ARENA_MAX": "1"}


def measure_in_process(
    study: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None
) -> Any:
    """Run a study in a new process and return the JSON value of the last line that it prints.

    Args:
        study: Name of the study.
        arguments: Command-line arguments that make it print a measurement.
        variables: Environment variables of the process beside those of this one.
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
    """Return the bytes of this process that lie in memory."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes of this process that lay in memory since ``forget_peak``."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Start the measurement of the peak anew."""
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
    def beyond(self) -> int:
        """The highest number of bytes minus those before."""
        return self.highest - self.before

    def lap(self) -> int:
        """Return the growth since the last lap, or since the beginning."""
        highest = peak()
        self.highest = max(self.highest, highest)
        forget_peak()
        return highest - self.before


@contextmanager
def growing() -> Iterator[Growth]:
    """Measure the growth of this process's memory inside the block."""
    forget_peak()
    growth = Growth(resident())
    try:
        yield growth
    finally:
        growth.lap()
