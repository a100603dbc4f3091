"""The folder of a run: its inputs, checkpoints and results, and the point from which to resume."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.checkpoint import Checkpoint, latest_checkpoint, remove_unfinished
from ..files.tensor_file import replace_file
from .lock import LOCK_FILE, run_lock
from .run_store import StoredRun, load_run, remove_unfinished_runs, result_folder, save_run

PIECES_FILE = "pieces.json"
KEPT_FILE = "stopped.json"
CHECKPOINTS = "checkpoints"

_BEGUN_FOR = re.compile(r"^begun for (\d+) steps$")


@dataclass(frozen=True)
class StartingPoint:
    """The state from which a run starts.

    Args:
        checkpoint: Checkpoint from which the run is resumed; None starts at step 1.
        folder: Folder of the run's checkpoints.
        begun_for: Number of steps that was requested when the run began.
        notes: Sentences for the user that explain the starting point.
    """

    checkpoint: Checkpoint | None
    folder: Path
    begun_for: int
    notes: list[str]


@dataclass(frozen=True)
class RunFolder:
    """The folder ``<root>/<name>-<identity>``.

    Args:
        root: Folder of all runs.
        name: Name chosen by the user.
        identity: Id of the inputs that determine the result, excluding the number of steps.
    """

    root: Path
    name: str
    identity: str

    @property
    def path(self) -> Path:
        """Return the folder itself."""
        return self.root / f"{self.name}-{self.identity}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock inside the block; an error before the first save leaves no folder.

        Raises:
            RuntimeError: Another process holds the lock, or the folder can't be written.
        """
        with run_lock(self.path):
            remove_unfinished(self.path)
            remove_unfinished_runs(self.path)
            try:
                yield
            except BaseException:
                if not any(self.path.rglob("*.safetensors")):
                    self._clear()
                raise

    def _clear(self) -> None:
        with suppress(OSError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK_FILE:
                    path.unlink()

    def result(self, steps: int) -> Path:
        """Return the folder of the result after ``steps``."""
        return result_folder(self.root, self.name, self.identity, steps)

    def finished(self, steps: int) -> StoredRun | None:
        """Return the result for ``steps`` requested steps, or the one at which the user stopped.

        A stop is valid until more steps are requested than when it was pressed.

        Raises:
            ValueError: The stored result is damaged.
        """
        run = load_run(self.result(steps))
        if run is None:
            stop = _read_json(self.path / KEPT_FILE) or {}
            done, wished = stop.get("steps"), stop.get("wished")
            if isinstance(done, int) and isinstance(wished, int) and done < steps <= wished:
                run = load_run(self.result(done))
        return run

    def store(self, run: StoredRun, wished: int) -> None:
        """Write a result; one with fewer steps than requested is marked as stopped by the user.

        Raises:
            OSError: The result can't be written; no partial result is left.
            RuntimeError: The result can't be written; the message names the file that failed.
        """
        save_run(self.result(run.steps), run)
        if run.steps < wished:
            stop = {"steps": run.steps, "wished": wished}
            replace_file(self.path / KEPT_FILE, json.dumps(stop).encode())

    def starting_point(
        self, steps: int, decided: Callable[[int], object] = lambda steps: None
    ) -> StartingPoint:
        """Return the starting point of a run of ``steps``; call it while holding the run's lock.

        A run goes on from its own checkpoints first, then from those of a shorter one, which still
        goes as it was begun. Those of a longer one serve only where it began in the same way.

        Args:
            steps: Requested number of steps.
            decided: Function that returns what the number of steps requested at the beginning
                decides of a run.
        """
        begun: list[tuple[tuple[bool, int], StartingPoint]] = []
        notes: list[str] = []
        for folder in sorted((self.path / CHECKPOINTS).glob("*")):
            match = _BEGUN_FOR.match(folder.name)
            if match is None:
                continue
            remove_unfinished(folder)
            found, passed_over = latest_checkpoint(folder, steps)
            notes += passed_over
            begun_for = int(match[1])
            same = decided(begun_for) == decided(steps)
            if found is not None and (same or begun_for <= steps):
                point = StartingPoint(found, folder, begun_for, notes)
                begun.append(((same, found.step), point))
        if not begun:
            folder = self.path / CHECKPOINTS / f"begun for {steps} steps"
            return StartingPoint(None, folder, steps, notes)
        (_, step), point = max(begun, key=lambda candidate: candidate[0])
        notes.append(f"goes on from step {step}")
        return point

    def describe(self, pieces: Mapping[str, Any]) -> str | None:
        """Store the inputs of the run; return how a new run differs from the last one.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written to.
        """
        file = self.path / PIECES_FILE
        if file.exists():
            with suppress(OSError):
                os.utime(file)  # the modification time marks the run that was trained last
            return None
        changed = self._changed_since_last(pieces)
        replace_file(file, json.dumps(pieces, indent=1).encode())
        return changed

    def _changed_since_last(self, pieces: Mapping[str, Any]) -> str | None:
        others = [
            file
            for file in self.root.glob(f"*/{PIECES_FILE}")
            if file.parent != self.path and file.parent.name[: -len(self.identity) - 1] == self.name
        ]
        for file in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
            before = _read_json(file)
            if before is not None:
                changed = ", ".join(changed_pieces(before, pieces)) or "the pack's version"
                return f"starts anew, since this changed since the last run: {changed}"
        return None


def changed_pieces(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs that differ, such as ``before 2`` or ``settings flip``."""
    names = []
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += [f"{key} {part}" for part in changed_pieces(old, new)]
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) > 1:
            pairs = zip(old, new, strict=True)
            names += [f"{key} {n}" for n, (a, b) in enumerate(pairs, start=1) if a != b]
        else:
            names.append(key)
    return names


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
