"""The live panel of a training run: the state that pages show, and its buttons."""

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

_SEND_INTERVAL = 0.25  # minimum seconds between two messages about steps
_MAX_RUNS = 16  # number of runs, ended ones included, that a reloaded page can show
_TIMED_STEPS = 100  # number of latest steps from which the remaining time is estimated
MOST_POINTS = 2000  # maximum number of points that a curve keeps
_SMOOTHING = 0.97  # decay of the smoothed loss, which averages about thirty steps

Point = tuple[int, float, float]  # step, loss and smoothed loss

_runs: dict[str, LivePanel] = {}
_runs_lock = threading.Lock()


def known_runs() -> list[LivePanel]:
    """Return the running runs and the latest ended ones, oldest first."""
    with _runs_lock:
        return list(_runs.values())


def find_run(run: str) -> LivePanel | None:
    """Return the run with this id, or None if it is unknown."""
    with _runs_lock:
        return _runs.get(run)


def panel_id(folder: RunFolder, node_id: str | None) -> str:
    """Return the id of a run on a node's panel, 12 hexadecimal digits.

    The node is part of the id, because two trainers may execute the same run one after the other,
    the second with more steps.
    """
    return hashlib.sha256(f"{folder.path.name}/{node_id}".encode()).hexdigest()[:12]


def _register(panel: LivePanel) -> None:
    """Add a run to the known runs; it replaces an older one with the same id."""
    with _runs_lock:
        _runs.pop(panel.run, None)
        _runs[panel.run] = panel
        ended = [run for run, known in _runs.items() if not known.running]
        for run in ended[: max(0, len(_runs) - _MAX_RUNS)]:
            del _runs[run]


class LivePanel:
    """The training callback that sends every step to the pages and receives their buttons.

    The training thread writes the state; the server's thread reads it and presses buttons.

    Args:
        node_id: Id of the node in the graph; None outside a server.
        folder: Folder of the run.
        config: Configuration of the run.
        start: Checkpoint from which the run is resumed, or None.
    """

    def __init__(
        self,
        node_id: str | None,
        folder: RunFolder,
        config: TrainingConfig,
        start: Checkpoint | None,
    ):
        self.run, self.node_id = panel_id(folder, node_id), node_id
        self.notes: list[str] = []
        self._lock = threading.Lock()
        self._pressed: set[str] = set()
        self._curve = Curve()
        self._times: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._sent_step, self._sent_at, self._messages = 0, 0.0, 0
        self._state: dict[str, Any] = {
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
        """Return whether the run has not ended, so that its buttons work."""
        return self._state["state"] == RUNNING

    @contextmanager
    def open(self) -> Iterator[None]:
        """Register the run inside the block, and mark it as ended at the end."""
        _register(self)
        self._change(doing="preparing")
        end = BROKEN
        try:
            yield
            end = FINISHED if self._state["step"] >= self._state["steps"] else STOPPED
        finally:
            with self._lock:
                self._pressed.clear()
            self._change(state=end, doing="", seconds_left=None)

    def __call__(self, event: Event) -> bool:
        """Send a step to the pages; return true if the user has pressed *Stop*."""
        stop = self.take_press("stop")
        self._times.append(time.monotonic())
        with self._lock:
            self._curve.add(event.step, event.loss)
            self._state |= {
                "doing": "",
                "step": event.step,
                "loss": event.loss,
                "rows": dict(event.losses),
                "learning_rate": event.session.optimizer.param_groups[0]["lr"],
                "seconds_left": self._seconds_left(event),
            }
        # The end of the run sends the last step in any case.
        if time.monotonic() - self._sent_at >= _SEND_INTERVAL:
            self._send()
        return stop

    def _seconds_left(self, event: Event) -> float | None:
        """Return the estimated remaining time, from the duration of the latest steps."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return round(pace * (event.steps - event.step), 1)

    def press(self, button: str) -> bool:
        """Keep a button press until the run's next step; return false if the run has ended."""
        with self._lock:
            if not self.running:
                return False
            self._pressed.add(button)
        self._send()
        return True

    def take_press(self, button: str) -> bool:
        """Return whether a button of ``BUTTONS`` was pressed since the last call, and reset it."""
        with self._lock:
            pressed = button in self._pressed
            self._pressed.discard(button)
        return pressed

    def show_activity(self, activity: str) -> None:
        """Show an activity that delays the next step; an empty text removes it."""
        self._change(doing=activity)

    def show_picture(self, file: Path, step: int) -> None:
        """Show a picture that is stored below ComfyUI's output folder."""
        subfolder = file.parent.relative_to(folder_paths.get_output_directory()).as_posix()
        address = {"filename": file.name, "subfolder": subfolder, "type": "output"}
        self._change(picture={**address, "step": step}, doing="")

    def note(self, text: str) -> None:
        """Show a sentence on the node, during the run and after it; repeated ones are ignored."""
        if text in self.notes:
            return
        with self._lock:
            self.notes.append(text)
        show_text(self.node_id, "\n".join(self.notes))
        self._send()

    def warn(self, text: str) -> None:
        """Log a sentence about a problem that does not end the run, and show it on the node."""
        logging.warning("Pastiche: %s", text)
        self.note(text)

    def snapshot(self) -> dict[str, Any]:
        """Return the complete state for a page, as plain values."""
        with self._lock:
            return self._message(0)

    def _message(self, after: int) -> dict[str, Any]:
        """Return the state with the curve's points after a step; the lock must be held."""
        return {
            **self._state,
            "notes": list(self.notes),
            "pressed": sorted(self._pressed),
            "message": self._messages,
            "points": self._curve.since(after),
        }

    def _change(self, **values: Any) -> None:
        with self._lock:
            self._state |= values
        self._send()

    def _send(self) -> None:
        """Send the state and the curve's new points to every open page."""
        with self._lock:
            self._messages += 1
            message = self._message(self._sent_step)
            self._sent_step, self._sent_at = self._state["step"], time.monotonic()
        server = getattr(PromptServer, "instance", None)
        if server is not None and self.node_id is not None:
            server.send_sync(MESSAGE, message)


def _workflow_id() -> str | None:
    """Return the id of the workflow that is being executed; None if no page queued it.

    It tells trainers of different workflows apart, whose node ids may be equal. A workflow that was
    never saved may have no id yet; the page then sends zeros, which count as None.
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
    """A loss curve that drops every second point whenever it has too many."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._latest: Point | None = None
        self._every = 1
        self._sum = self._weight = 0.0

    def add(self, step: int, loss: float) -> None:
        """Add the loss of the next step."""
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._latest = step, _rounded(loss), _rounded(self._sum / self._weight)
        if step % self._every == 0:
            self._points.append(self._latest)
        if len(self._points) >= MOST_POINTS:
            self._every *= 2
            self._points = [point for point in self._points if point[0] % self._every == 0]

    def since(self, step: int) -> list[Point]:
        """Return the points after ``step``, always including the latest one."""
        points = [point for point in self._points if point[0] > step]
        if self._latest is not None and self._latest[0] > step and points[-1:] != [self._latest]:
            points.append(self._latest)
        return points


def _rounded(number: float) -> float:
    """Return the number rounded to six digits, as thousands of them are sent to the page."""
    return float(f"{number:.6g}")
