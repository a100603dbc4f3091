"""Start a headless process that trains and can be killed."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import killed_run


class Headless:
    """A headless process that trains below output folders, each run in a separate child process.

    Args:
        base_directory: Folder of ComfyUI's files.
        trainer: Key of ``killed_run.TRAINERS``.
    """

    def __init__(self, base_directory: Path, trainer: str = "pair"):
        self.process = subprocess.Popen(
            [sys.executable, killed_run.__file__, str(base_directory), trainer],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read("ready")
        self._busy = False

    def _read(self, word: str) -> int:
        """Return the number after the word; ComfyUI may print other lines before."""
        for line in self.process.stdout:
            if found := re.fullmatch(rf"{word} (\d+)", line.strip()):
                return int(found[1])
        raise RuntimeError("the headless process must not end")

    def begin(self, output: Path) -> int:
        """Begin or resume a run and return its process id."""
        if self._busy:  # an earlier test has failed
            self.wait()
        self._busy = True
        output.mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(f"{output}\n")
        self.process.stdin.flush()
        return self._read("begun")

    def wait(self) -> int:
        """Wait for the end of the run and return its exit status, 0 for success."""
        self._busy = False
        return self._read("ended")

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def wait_for(output: Path, pattern: str) -> None:
    """Wait for a file of that name below an output folder."""
    deadline = time.monotonic() + 300
    while not _found(output, pattern):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _found(output: Path, pattern: str) -> bool:
    try:
        return any(output.rglob(pattern))
    except FileNotFoundError:  # the run has moved a folder during the search
        return False
