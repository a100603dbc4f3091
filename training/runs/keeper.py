"""The callback that keeps a run from being lost: checkpoints by steps, minutes and on demand."""

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
    """Writes checkpoints after whole steps, and the last one when a run ends early.

    Args:
        folder: Of the checkpoints.
        every_steps: Steps between them; 0 goes by time alone.
        every_minutes: Minutes between them; 0 goes by steps alone.
        keep: How many stay.
        warn: Told, in a sentence, of a checkpoint that couldn't be written; training goes on.
        clock: In seconds.
        kept: The step of the last checkpoint that was written; at first, what the run goes on from.
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
        """Write a checkpoint where it is time for one."""
        self.session = event.session
        late = self.every_minutes and self.clock() - self._since >= 60 * self.every_minutes
        if late or (self.every_steps and event.step % self.every_steps == 0):
            try:
                self.keep_now()
            except RuntimeError as error:
                self.warn(f"no checkpoint at step {event.step}: {error}")

    def keep_now(self) -> None:
        """Write a checkpoint of the step that was taken last.

        Raises:
            RuntimeError: The disk is full or read-only, or what is learnt is no longer finite; the
                checkpoints before are still there.
        """
        if self.session is not None and self.session.whole and self.session.step != self.kept:
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
        """Keep what there is when a run breaks off, and return a sentence that says which step.

        It never raises: what broke the run is what the user must hear. ``None`` where nothing has
        been trained yet.
        """
        problem = ""
        try:
            self.keep_now()
        except (RuntimeError, OSError) as error:
            problem = f" ({str(error).rstrip('.')})"
        if self.kept is not None:
            return f"step {self.kept} is kept{problem}: queue the same graph again to go on from it"
        return None if self.session is None else f"no step was kept{problem}"
