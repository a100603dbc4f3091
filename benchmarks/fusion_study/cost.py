"""Seconds and peak memory of a whole fusion, measured in a process of its own.

``python3 benchmarks/run.py fusion --cost 8`` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parents[1] / "run.py"


def measured(count: int, threads: int) -> dict[str, Any]:
    """Run the measurement of a fusion in a new process and return it."""
    command = [sys.executable, str(RUN), "fusion", "--cost", str(count), "--threads", str(threads)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(base: Any, concepts: Sequence[Any]) -> dict[str, Any]:
    """Seconds by stage, and the process's memory beyond what it had before, in MiB."""
    import folder_paths
    import torch
    from pack.nodes.bridge.fusion_run import fuse

    from .arms import request

    with tempfile.TemporaryDirectory() as output, torch.inference_mode():
        folder_paths.set_output_directory(output)
        fuse(request(base, concepts[:2], steps=1))  # whatever is made once
        with Peak() as peak:
            started = time.monotonic()
            done = fuse(request(base, concepts))
            seconds = time.monotonic() - started
    return {
        "concepts": len(concepts),
        "seconds": seconds,
        "growth_mib": peak.growth / 2**20,
        "peak_mib": peak.highest / 2**20,
        "stages": {
            stage.stage: {
                "collecting": stage.collecting,
                "solving": stage.solving,
                "statistics_mib": stage.statistics / 2**20,
            }
            for stage in done.report.stages
        },
    }


class Peak:
    """Watches the process's memory, twenty times a second."""

    def __enter__(self) -> Peak:
        """Begin."""
        import psutil

        self._process, self._over = psutil.Process(), threading.Event()
        self.before = self.highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes beyond what the process had before."""
        return self.highest - self.before

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.highest = max(self.highest, self._process.memory_info().rss)
