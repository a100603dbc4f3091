"""Lock a run folder for one process; the system releases the lock when the process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if os.name == "nt":
    import msvcrt
else:
    import fcntl

LOCK_FILE = "lock"
TRAINING = (  # error message if another process holds the lock of a training run
    "a run must be trained by one ComfyUI at a time, got {folder} in use by another; "
    "wait for it, stop it, or choose another run_name"
)


class UnwritableError(RuntimeError):
    """Raised if no lock can be created in a folder."""


@contextmanager
def run_lock(folder: Path, in_use: str = TRAINING) -> Iterator[None]:
    """Hold the folder's lock inside the block; the system frees it when the process ends.

    If the folder contains only the lock afterwards, it is removed.

    Args:
        folder: Folder to lock.
        in_use: Error message if the lock is held already, with ``{folder}``.

    Raises:
        RuntimeError: Another process, or another run of this process, holds the lock.
        UnwritableError: The folder can't be written.
    """
    descriptor = _acquired(folder, in_use)
    try:
        yield
    finally:
        # Windows can't remove an open file; elsewhere the file is removed while it is locked.
        if os.name == "nt":
            os.close(descriptor)
            _remove_bare(folder)
        else:
            _remove_bare(folder)
            os.close(descriptor)


def _acquired(folder: Path, in_use: str) -> int:
    """Return a descriptor that holds the lock."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UnwritableError(
                f"the run's folder {folder} must be writable, got: {error.strerror or error}; "
                "allow writing there or start ComfyUI with another output folder"
            ) from error
        try:
            _acquire(descriptor, folder, in_use)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_there(descriptor, folder):
            return descriptor
        os.close(descriptor)  # the previous holder removed the file meanwhile


def _acquire(descriptor: int, folder: Path, in_use: str) -> None:
    try:
        if os.name == "nt":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RuntimeError(in_use.format(folder=folder)) from error


def _is_there(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK_FILE))
    except OSError:
        return False


def _remove_bare(folder: Path) -> None:
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
            folder.rmdir()
