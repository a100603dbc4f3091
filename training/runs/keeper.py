"""The callback that writes checkpoints by steps, by minutes and on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..files.checkpoint import save_checkpoint
from ..progress import Event
from ..session import Session


@dataclass
class Keeper:
    """Writes checkpoints after complete steps, and a last one when a run ends early.

    Args:
        folder: Folder of the checkpoints.
        every_steps: Steps between checkpoints; 0 uses only the time.
        every_minutes: Minutes between checkpoints; 0 uses only the steps.
        keep: Number of checkpoints to keep.
        warn: Function that receives a sentence if a checkpoint can't be written; training
            continues.
        clock: Function that returns the time in seconds.
        kept: Step of the last checkpoint; initially the step from which the run is resumed.
    """

    folder: Path
    every_steps: int
    every_minutes: float
    keep: int
    warn: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    kept: int | None = None
    session: Session | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    def __call__(self, event: Event) -> None:
        """Write a checkpoint if one is due."""
        self.session = event.session
        late = self.every_minutes and self.clock() - self._since >= 60 * self.every_minutes
        if late or (self.every_steps and event.step % self.every_steps == 0):
            try:
                self.keep_now()
            except RuntimeError as error:
                self.warn(f"no checkpoint at step {event.step}: {error}")

    def keep_now(self) -> None:
        """Write a checkpoint of the last step.

        Raises:
            RuntimeError: The disk is full or read-only, or learnt values are not finite; earlier
                checkpoints are kept.
        """
        if self.session is not None and self.session.consistent and self.session.step != self.kept:
            save_checkpoint(self.folder, self.session.checkpoint(), self.keep)
            self.kept = self.session.step
        self._since = self.clock()

    def finish(self) -> None:
        """Write the last checkpoint, from which more steps can extend the run."""
        try:
            self.keep_now()
        except RuntimeError as error:
            self.warn(f"the run can't be extended later: {error}")

    def rescue(self) -> str | None:
        """Write a checkpoint after an error, and return a sentence that names its step.

        It never raises, so that the original error reaches the user. Returns None if no step was
        taken yet.
        """
        problem = ""
        try:
            self.keep_now()
        except (RuntimeError, OSError) as error:
            problem = f" ({str(error).rstrip('.')})"
        if self.kept is not None:
            return f"step {self.kept} is kept{problem}: queue the same graph again to go on from it"
        return None if self.session is None else f"no step was kept{problem}"
