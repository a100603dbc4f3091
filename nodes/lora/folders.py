"""ComfyUI's LoRA folders: what lies in them, where a new file may go, and the page's lists."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import folder_paths
from server import PromptServer

KIND = "loras"
EMBEDDINGS = "embeddings"
"""ComfyUI's names of the folders that the pack writes to."""

CHANGED = "pastiche.loras_changed"
"""Message that makes every open page read its lists of LoRAs anew."""

ENDING = ".safetensors"
_FOLDERS = {KIND: "LoRA", EMBEDDINGS: "embedding"}


def lora_names() -> list[str]:
    """Return the LoRAs as ComfyUI's own loader lists them."""
    return folder_paths.get_filename_list(KIND)


def lora_path(name: str) -> Path:
    """Return where a listed LoRA lies.

    Raises:
        ValueError: There is none of that name.
    """
    path = folder_paths.get_full_path(KIND, name)
    if path is None:
        raise ValueError(
            f"a LoRA of the list must be chosen, got {name!r}, which is in none of the LoRA "
            "folders; refresh the page and choose again"
        )
    return Path(path)


def fingerprint(name: str, kind: str = KIND) -> tuple[int, int] | None:
    """Return what changes when the file behind a name does: its time and its size."""
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def writable_folder(below: PurePosixPath, kind: str = KIND) -> Path:
    """Return the folder ``below`` the first folder that can be written to; it exists then.

    Args:
        below: Of a kind's folder.
        kind: ``KIND`` or ``EMBEDDINGS``.

    Raises:
        RuntimeError: None of the kind's folders can be written to.
    """
    reasons = []
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        folder = root / below
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{str(folder)!r} ({error.strerror})")
    raise RuntimeError(
        f"one {_FOLDERS[kind]} folder must be writable, got {', '.join(reasons) or 'no folder at all'}; "
        "change its permissions or free some space"
    )


def candidates(name: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield the name with its ending, then the same with ``_2``, ``_3`` and so on."""
    stem = name.name.removesuffix(ENDING)
    yield name.with_name(stem + ENDING)
    number = 2
    while True:
        yield name.with_name(f"{stem}_{number}{ENDING}")
        number += 1


def taken_by(name: PurePosixPath, kind: str = KIND) -> Path | None:
    """Return the file that ComfyUI would load under a name, from whichever folder of a kind."""
    path = folder_paths.get_full_path(kind, str(name))
    return None if path is None else Path(path)


def announce(name: str) -> None:
    """Tell the open pages that there is a new LoRA."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(CHANGED, {"name": name})
