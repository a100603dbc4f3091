"""A measurement in a process of its own, and how much memory it takes beyond what was there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory

RUN = Path(__file__).resolve().parents[1] / "run.py"


def in_process(arguments: Sequence[str]) -> Any:
    """Run the study with these arguments in a new process and return what it prints as JSON.

    What it says of errors goes where this process says its own.
    """
    # Freed memory goes back at once, so that the resident set is what the run holds.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(memory.MB),
        "MALLOC_ARENA_MAX": "1",
    }
    run = subprocess.run(
        [sys.executable, str(RUN), "fusion", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@dataclass
class Growth:
    """The highest resident set, in bytes.

    Args:
        before: What the process held before.
        highest: The most that it held since.
    """

    before: int
    highest: int = 0

    @property
    def beyond(self) -> int:
        """Bytes beyond what was there before."""
        return self.highest - self.before

    def lap(self) -> int:
        """The bytes beyond since the last lap, or the beginning."""
        peak = memory._peak()
        self.highest = max(self.highest, peak)
        memory._forget_peak("cpu")
        return peak - self.before


@contextmanager
def growing() -> Iterator[Growth]:
    """Watch the process's memory inside the block."""
    memory._forget_peak("cpu")
    growth = Growth(memory._resident())
    try:
        yield growth
    finally:
        growth.lap()
