"""Run training stages that SIGTERM stops cleanly and that resume to identical results."""

from __future__ import annotations

import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

SAVE_SECONDS = 180.0  # time between checkpoints


class Stage(ABC):
    """A training whose complete state can be saved between two steps.

    All random numbers of step ``number`` must depend on ``number`` only, so that a resumed training
    ends with the same bytes as an uninterrupted one.

    Args:
        folder: Folder of checkpoint and result.
        name: Name of the stage and of its files.
        world: Hash of the world; a checkpoint of another world is refused.
        steps: Total number of steps.
    """

    def __init__(self, folder: Path, name: str, world: str, steps: int) -> None:
        self.folder, self.name, self.world, self.steps = folder, name, world, steps
        self.done = 0

    @property
    def checkpoint(self) -> Path:
        """Return the file of the state of an unfinished training."""
        return self.folder / f"{self.name}.training.pt"

    @property
    def result(self) -> Path:
        """Return the file of the result of a finished training."""
        return self.folder / f"{self.name}.pt"

    @abstractmethod
    def state(self) -> dict:
        """Return the state from which the next step continues."""

    @abstractmethod
    def restore(self, state: dict) -> None:
        """Restore a state that ``state`` returned."""

    @abstractmethod
    def step(self, number: int) -> float:
        """Take one step and return a number for the log, such as a loss or a PSNR."""

    @abstractmethod
    def finish(self) -> None:
        """Write the result after the last step."""

    def write_result(self, state: dict[str, Tensor]) -> None:
        """Write the result file atomically."""
        _write(state, self.result)

    def save(self) -> None:
        """Write the checkpoint atomically, so that a reader never sees half a file."""
        _write({"step": self.done, "world": self.world, **self.state()}, self.checkpoint)

    def resume(self) -> None:
        """Restore the checkpoint if there is one.

        Raises:
            ValueError: It was made in another world.
        """
        if not self.checkpoint.is_file():
            return
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if saved["world"] != self.world:
            raise ValueError(
                f"the checkpoint of {self.name} must be of the world {self.world}, got "
                f"{saved['world']}; delete {self.checkpoint.name} to start anew, or check out the "
                "commit that it was made with"
            )
        self.restore(saved)
        self.done = saved["step"]

    def run(self, report_every: int = 50, until: int | None = None) -> bool:
        """Train until the end, step ``until`` or SIGTERM, and return whether the stage finished."""
        self.resume()
        stopped: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        last = self.steps if until is None else min(until, self.steps)
        saved = began = time.monotonic()
        first, recent = self.done, 0.0
        try:
            while self.done < last and not stopped:
                recent += self.step(self.done)
                self.done += 1
                if self.done % report_every == 0:
                    pace = (time.monotonic() - began) / (self.done - first)
                    mean = recent / min(report_every, self.done - first)
                    logging.info(
                        "%s step %d: %.4f, %.2f s a step", self.name, self.done, mean, pace
                    )
                    recent = 0.0
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
        finally:
            signal.signal(signal.SIGTERM, before)
        self.save()
        if self.done < self.steps:
            logging.info("%s stopped at step %d of %d", self.name, self.done, self.steps)
            return False
        self.finish()
        return True


def _write(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
