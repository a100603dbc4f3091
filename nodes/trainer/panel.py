"""A run on its node's panel: what it shows, and the buttons it obeys."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...training import Checkpoint, TrainingConfig
from ...training.progress import Event
from ...training.runs.run_folder import RunFolder
from ..bridge.node_output import show_text

MESSAGE = "pastiche.training"
BUTTONS = ("sample", "save", "stop")
RUNNING, FINISHED, STOPPED, BROKEN = "running", "finished", "stopped", "broken"

_PAUSE = 0.25
"""Seconds between two messages on steps; steps may be faster."""
_REMEMBERED = 16
"""Runs that a reloaded page may ask for, ended ones among them."""
_TIMED_STEPS = 100
MOST_POINTS = 2000
_SMOOTHING = 0.97
"""Of the running mean: about the last thirty steps count."""

Point = tuple[int, float, float]
"""Step, loss and smoothed loss."""

_runs: dict[str, LivePanel] = {}
_runs_lock = threading.Lock()


def known_runs() -> list[LivePanel]:
    """Return the running and the latest ended runs, oldest first."""
    with _runs_lock:
        return list(_runs.values())


def find_run(run: str) -> LivePanel | None:
    """Return the run of that id, ``None`` for an unknown one."""
    with _runs_lock:
        return _runs.get(run)


def live_id(folder: RunFolder, node_id: str | None) -> str:
    """Return the id by which the page knows a run: 12 hex digits, its own for every trainer.

    Two trainers may make the same run in turn, the second with more steps.
    """
    return hashlib.sha256(f"{folder.path.name}/{node_id}".encode()).hexdigest()[:12]


def _remember(panel: LivePanel) -> None:
    """Hold a run among those that are known, in place of an older one that is equal."""
    with _runs_lock:
        _runs.pop(panel.run, None)
        _runs[panel.run] = panel
        ended = [run for run, known in _runs.items() if not known.running]
        for run in ended[: max(0, len(_runs) - _REMEMBERED)]:
            del _runs[run]


class LivePanel:
    """The callback that tells the page of every step and passes its buttons on.

    The run's thread writes, the server's thread reads and presses buttons.

    Args:
        node_id: Of the node in the graph; ``None`` outside a server.
        folder: Of the run.
        config: Of the loop.
        start: What the run goes on from.
    """

    def __init__(
        self,
        node_id: str | None,
        folder: RunFolder,
        config: TrainingConfig,
        start: Checkpoint | None,
    ):
        self.run, self.node_id = live_id(folder, node_id), node_id
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._pressed: set[str] = set()
        self._curve = Curve()
        self._times: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._sent_step, self._sent_at, self._messages = 0, 0.0, 0
        self._shown: dict[str, Any] = {
            "run": self.run,
            "name": folder.name,
            "node_id": node_id,
            "workflow": _workflow_id(),
            "started": time.time(),
            "state": RUNNING,
            "doing": "",
            "step": start.step if start else 0,
            "steps": config.steps,
            "loss": None,
            "rows": {},
            "learning_rate": None,
            "seconds_left": None,
            "picture": None,
        }
        for step, loss in enumerate(start.curves.get("loss", ()) if start else (), start=1):
            self._curve.add(step, loss)

    @property
    def running(self) -> bool:
        """Return whether the run obeys its buttons."""
        return self._shown["state"] == RUNNING

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the run among those that the page may ask for."""
        _remember(self)
        self._change(doing="preparing")
        end = BROKEN
        try:
            yield
            end = FINISHED if self._shown["step"] >= self._shown["steps"] else STOPPED
        finally:
            with self._lock:
                self._pressed.clear()
            self._change(state=end, doing="", seconds_left=None)

    def __call__(self, event: Event) -> bool:
        """Tell the page of a step; true ends the run as the user asked."""
        stop = self.asked("stop")
        self._times.append(time.monotonic())
        with self._lock:
            self._curve.add(event.step, event.loss)
            self._shown |= {
                "doing": "",
                "step": event.step,
                "loss": event.loss,
                "rows": dict(event.losses),
                "learning_rate": event.session.optimizer.param_groups[0]["lr"],
                "seconds_left": self._seconds_left(event),
            }
        # The last step is told of by the end of the run.
        if time.monotonic() - self._sent_at >= _PAUSE:
            self._send()
        return stop

    def _seconds_left(self, event: Event) -> float | None:
        """Return an estimate from the latest steps, pictures and checkpoints among them."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return round(pace * (event.steps - event.step), 1)

    def press(self, button: str) -> bool:
        """Remember a button until the run's next step; false where the run has ended."""
        with self._lock:
            if not self.running:
                return False
            self._pressed.add(button)
        self._send()
        return True

    def asked(self, button: str) -> bool:
        """Return whether a button (``sample``, ``save`` or ``stop``) was pressed since last asked."""
        with self._lock:
            pressed = button in self._pressed
            self._pressed.discard(button)
        return pressed

    def doing(self, what: str) -> None:
        """Show what keeps the run from its next step."""
        self._change(doing=what)

    def show_picture(self, file: Path, step: int) -> None:
        """Show a picture below ComfyUI's output folder."""
        place = file.parent.relative_to(folder_paths.get_output_directory()).as_posix()
        address = {"filename": file.name, "subfolder": place, "type": "output"}
        self._change(picture={**address, "step": step}, doing="")

    def note(self, text: str) -> None:
        """Show a sentence on the node, now and when the run is over."""
        if text in self.notes:
            return
        with self._lock:
            self.notes.append(text)
        show_text(self.node_id, "\n".join(self.notes))
        self._send()

    def warn(self, text: str) -> None:
        """Show a sentence about something that went wrong without ending the run."""
        logging.warning("Pastiche: %s", text)
        self.note(text)

    def snapshot(self) -> dict[str, Any]:
        """Return all that a page needs to show the run, as plain values."""
        with self._lock:
            return self._described(0)

    def _described(self, after: int) -> dict[str, Any]:
        return {
            **self._shown,
            "notes": list(self.notes),
            "pressed": sorted(self._pressed),
            "message": self._messages,
            "points": self._curve.since(after),
        }

    def _change(self, **values: Any) -> None:
        with self._lock:
            self._shown |= values
        self._send()

    def _send(self) -> None:
        """Send what is shown and the curve's new points to every open page."""
        with self._lock:
            self._messages += 1
            described = self._described(self._sent_step)
            self._sent_step, self._sent_at = self._shown["step"], time.monotonic()
        server = getattr(PromptServer, "instance", None)
        if server is not None and self.node_id is not None:
            server.send_sync(MESSAGE, described)


def _workflow_id() -> str | None:
    """Return the id of the page's workflow that runs now, ``None`` where no page queued it.

    Two workflows may have a trainer of equal node id. One that was never saved may have no id yet,
    which the page writes as zeros.
    """
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is None or context is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    for _, prompt_id, _, extra, *_ in running:
        if prompt_id == context.prompt_id:
            found = (extra.get("extra_pnginfo") or {}).get("workflow", {}).get("id")
            return found if found and found.strip("0-") else None
    return None


class Curve:
    """Points of which every second goes, from the first to the last, when they become too many."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._latest: Point | None = None
        self._every = 1
        self._sum = self._weight = 0.0

    def add(self, step: int, loss: float) -> None:
        """Take the loss of the next step up."""
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._latest = step, _short(loss), _short(self._sum / self._weight)
        if step % self._every == 0:
            self._points.append(self._latest)
        if len(self._points) >= MOST_POINTS:
            self._every *= 2
            self._points = [point for point in self._points if point[0] % self._every == 0]

    def since(self, step: int) -> list[Point]:
        """Return the points after ``step`` and always the latest one."""
        points = [point for point in self._points if point[0] > step]
        if self._latest is not None and self._latest[0] > step and points[-1:] != [self._latest]:
            points.append(self._latest)
        return points


def _short(number: float) -> float:
    """Return the number with six digits: thousands of them travel to the page."""
    return float(f"{number:.6g}")
