"""Store finished runs on disk, atomically: one folder per run id and per number of steps."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.lora_state import LoraState
from ..files.tensor_file import pack_tensors, read_header, read_tensors, write_new

RUN_FILE = "run.json"
FORMAT = 1  # version of the run folder; runs of other versions are not read

_RESERVED = frozenset('<>:"/\\|?*')
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10)),
}
_LONGEST_NAME = 80
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class StoredRun:
    """The result of a finished run.

    Args:
        steps: Number of training steps taken.
        pieces: Inputs from which the run's id was computed, by name.
        losses: Loss curves by name.
        loras: Resulting LoRAs by name.
        facts: Plain values about the run that are not part of its id.
    """

    steps: int
    pieces: Mapping[str, Any]
    losses: Mapping[str, list[float]]
    loras: Mapping[str, LoraState]
    facts: Mapping[str, Any]


def run_id(pieces: Mapping[str, Any]) -> str:
    """Return the run's id, twelve hexadecimal digits of a hash of the inputs' values.

    Args:
        pieces: Inputs of the run by name, as values that JSON can represent.
    """
    text = json.dumps(pieces, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def checked_run_name(name: str) -> str:
    """Return the name without outer spaces if it is valid in folder names on every system.

    Raises:
        ValueError: The name is empty, too long, or has a path, a drive or a reserved character.
    """
    name = name.strip()
    if not name or name != name.rstrip("."):
        raise ValueError(
            f'run_name must not be empty nor end in a dot, got "{name}"; '
            "write a short name such as my_style"
        )
    bad = sorted({character for character in name if character in _RESERVED or ord(character) < 32})
    if bad or name.split(".")[0].upper() in _DEVICES:
        found = " ".join(repr(character) for character in bad) or "a name the system reserves"
        raise ValueError(
            "run_name must be a plain name without folders, drives or reserved characters, "
            f"got {name!r} with {found}; write a short name such as my_style"
        )
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"run_name must have at most {_LONGEST_NAME} characters, got {len(name)}; shorten it"
        )
    return name


def result_folder(root: Path, name: str, identity: str, steps: int) -> Path:
    """Return the folder of a run's result, ``root/<name>-<identity>/<steps> steps``."""
    return root / f"{name}-{identity}" / f"{steps} steps"


def require_space(root: Path, size: int) -> None:
    """Raise unless a result of ``size`` bytes can be stored under ``root``.

    Raises:
        RuntimeError: The folder can't be written, or its disk has too little free space.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"\0")
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise RuntimeError(
            f"the run's folder {root} must be writable, got: {error.strerror or error}; "
            "allow writing there or start ComfyUI with another output folder"
        ) from error
    if free < size:
        raise RuntimeError(
            f"the run's folder {root} needs {size / 2**20:.0f} MiB of free space, "
            f"got {free / 2**20:.0f} MiB; free some space on that disk"
        )


def load_run(folder: Path) -> StoredRun | None:
    """Return the run stored in ``folder``; None if there is none of this format.

    Raises:
        ValueError: The stored run is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["format"] != FORMAT:
            return None
        loras = {
            name: _read_lora(folder / f"{name}.safetensors", digest)
            for name, digest in run["loras"].items()
        }
        return StoredRun(run["steps"], run["pieces"], run["losses"], loras, run["facts"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = error if isinstance(error, ValueError) else f"{RUN_FILE} lacks what it must say"
        raise ValueError(
            f"the finished run in {folder} must be whole, but {what}; "
            "delete that folder to train anew"
        ) from error


def save_run(folder: Path, run: StoredRun) -> None:
    """Write the run into ``folder`` atomically.

    An existing run is kept, because equal id and steps mean that it is the same.

    Raises:
        OSError: The run can't be written; no partial run is left.
        RuntimeError: The run can't be written; the message names the file that failed.
    """
    if (folder / RUN_FILE).is_file():
        return
    created = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        digests = {}
        for name, lora in run.loras.items():
            packed = pack_tensors(lora)
            header = packed.header(lora.metadata)
            write_new(unfinished / f"{name}.safetensors", header, packed.data)
            digest = hashlib.sha256(header)
            digest.update(packed.data)
            digests[name] = digest.hexdigest()
        description = {
            "format": FORMAT,
            "steps": run.steps,
            "pieces": run.pieces,
            "losses": run.losses,
            "loras": digests,
            "facts": run.facts,
        }
        write_new(unfinished / RUN_FILE, json.dumps(description, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if created:
            shutil.rmtree(folder.parent, ignore_errors=True)
        raise


def remove_unfinished_runs(folder: Path) -> None:
    """Remove partial results of a killed process from a run's folder."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _read_lora(file: Path, digest: str) -> LoraState:
    lora = LoraState(read_tensors(file), read_header(file).metadata)
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{file.name} was changed since it was written")
    return lora
