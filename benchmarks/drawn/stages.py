"""A training stage: resumable at any step to the same bytes, stopped softly by SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

SAVE_SECONDS = 180.0


class Stage(ABC):
    """One training whose whole state can be set down between two steps.

    Every draw of step ``number`` must be a function of ``number`` alone, so that a training that
    was stopped and resumed ends with the bytes of one that was not.

    Args:
        folder: where checkpoint and result lie.
        name: the stage's name, and its files'.
        world: hash of the world; a checkpoint of another world is refused.
        steps: how many steps in all.
    """

    def __init__(self, folder: Path, name: str, world: str, steps: int) -> None:
        self.folder, self.name, self.world, self.steps = folder, name, world, steps
        self.done = 0

    @property
    def checkpoint(self) -> Path:
        """The file that holds the state of an unfinished training."""
        return self.folder / f"{self.name}.training.pt"

    @property
    def result(self) -> Path:
        """The file that holds what a finished training gives."""
        return self.folder / f"{self.name}.pt"

    @abstractmethod
    def state(self) -> dict:
        """Return everything that the next step needs."""

    @abstractmethod
    def restore(self, state: dict) -> None:
        """Take up what ``state`` returned."""

    @abstractmethod
    def step(self, number: int) -> float:
        """Do one step and return a figure to report: a loss, or a PSNR."""

    @abstractmethod
    def finish(self) -> None:
        """Write the result after the last step."""

    def write_result(self, state: dict[str, Tensor]) -> None:
        """Write the result file by a rename."""
        _write(state, self.result)

    def save(self) -> None:
        """Write the checkpoint by a rename, so that a reader never sees half a file."""
        _write({"step": self.done, "world": self.world, **self.state()}, self.checkpoint)

    def resume(self) -> None:
        """Take up the checkpoint, if there is one.

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
        """Train to the end, or to step ``until``, or to SIGTERM; return whether it finished."""
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
