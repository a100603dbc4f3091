"""Save and load checkpoints: all state for the next step, in one atomically written file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensor_file import data_digest, pack_tensors, read_header, read_tensors, replace_file

FORMAT = "1"  # version of checkpoint files; files of other versions are skipped

_CURVE = "curve/"
_SEAL = "digest"  # digest of the rest of the file: a resumed run must be exact to the bit

_NAME = re.compile(r"^step_(\d{8})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a complete step.

    Args:
        step: Number of steps done.
        tensors: Learnt parameters, their average and the optimizer's moments, on the CPU.
        scalars: The optimizer's plain values by name.
        curves: Loss curves by name.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]
    curves: Mapping[str, Sequence[float]]


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:08d}.safetensors"


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the last ``keep`` up to it; a failure removes none.

    Raises:
        RuntimeError: The disk is full or the folder can't be written to; no partial file is left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(
            f"checkpoints need a folder {str(folder)!r}, got: {error.strerror}; allow writing there"
        ) from error
    curves = {
        _CURVE + name: torch.tensor(list(values), dtype=torch.float64)
        for name, values in checkpoint.curves.items()
        if values
    }
    packed = pack_tensors({**checkpoint.tensors, **curves})
    metadata = {
        "format": FORMAT,
        "step": str(checkpoint.step),
        "scalars": json.dumps(checkpoint.scalars, sort_keys=True),
    }
    metadata[_SEAL] = _seal(metadata, packed.entries, packed.digest)
    path = checkpoint_file(folder, checkpoint.step)
    replace_file(path, packed.header(metadata), packed.data)
    # Checkpoints of later steps belong to an earlier, longer run.
    for old in [file for file in checkpoints(folder) if file <= path][keep:]:
        with suppress(OSError):
            old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, the latest step first."""
    found = [path for path in folder.glob("step_*.safetensors") if _NAME.match(path.name)]
    return sorted(found, reverse=True)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint file is named after."""
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(f"a checkpoint must be named step_<number>.safetensors, got {path.name!r}")
    return int(match[1])


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint.

    Raises:
        ValueError: The file is damaged or of another version; the message gives the reason.
    """
    header = read_header(path)
    metadata = dict(header.metadata)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} must be a checkpoint of version {FORMAT}, "
            f"got version {metadata.get('format', 'none')}"
        )
    seal = metadata.pop(_SEAL, None)
    if seal != _seal(metadata, header.entries, data_digest(path, header)):
        raise ValueError(f"{path.name} must be as it was written, got one that was changed since")
    tensors = read_tensors(path)
    curves = {
        name.removeprefix(_CURVE): tensors.pop(name).tolist()
        for name in [name for name in tensors if name.startswith(_CURVE)]
    }
    try:
        scalars = json.loads(metadata["scalars"])
        step = int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name} must say its step and scalars, got none of them") from error
    return Checkpoint(step, tensors, scalars, curves)


def _seal(metadata: Mapping[str, str], entries: Mapping[str, Any], digest: str) -> str:
    text = json.dumps([metadata, entries, digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def latest_checkpoint(folder: Path, most: int) -> tuple[Checkpoint | None, list[str]]:
    """Return the latest usable checkpoint of at most ``most`` steps, and reasons for skipped ones.

    Damaged checkpoints and those of another version are skipped.
    """
    notes = []
    for path in checkpoints(folder):
        if step_of(path) > most:
            continue
        try:
            return load_checkpoint(path), notes
        except ValueError as error:
            notes.append(f"checkpoint {path.name} was not used: {error}")
    return None, notes


def remove_unfinished(folder: Path) -> None:
    """Remove partial files of a killed process; call it while holding the run's lock."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()
