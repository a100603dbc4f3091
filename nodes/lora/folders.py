"""Find files in ComfyUI's LoRA and embedding folders, and find a place for new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import folder_paths
from server import PromptServer

# ComfyUI's names of the folders that the pack writes to.
KIND = "loras"
EMBEDDINGS = "embeddings"

CHANGED = "pastiche.loras_changed"  # message that makes every open page reload its list of LoRAs

ENDING = ".safetensors"
_FOLDERS = {KIND: "LoRA", EMBEDDINGS: "embedding"}


def lora_names() -> list[str]:
    """Return the names of all LoRAs, as ComfyUI's own loader lists them."""
    return folder_paths.get_filename_list(KIND)


def lora_path(name: str) -> Path:
    """Return the path of a LoRA by its name in the list.

    Raises:
        ValueError: There is no LoRA with this name.
    """
    path = folder_paths.get_full_path(KIND, name)
    if path is None:
        raise ValueError(
            f"a LoRA of the list must be chosen, got {name!r}, which is in none of the LoRA "
            "folders; refresh the page and choose again"
        )
    return Path(path)


def fingerprint(name: str, kind: str = KIND) -> tuple[int, int] | None:
    """Return modification time and size of a listed file; None if there is none."""
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def writable_folder(below: PurePosixPath, kind: str = KIND) -> Path:
    """Create and return the subfolder ``below`` of the first folder that can be written to.

    Args:
        below: Path of the subfolder.
        kind: ``KIND`` or ``EMBEDDINGS``.

    Raises:
        RuntimeError: No folder of this kind can be written to.
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
    """Yield the name with its ending, then with ``_2``, ``_3`` and so on appended."""
    stem = name.name.removesuffix(ENDING)
    yield name.with_name(stem + ENDING)
    number = 2
    while True:
        yield name.with_name(f"{stem}_{number}{ENDING}")
        number += 1


def existing_file(name: PurePosixPath, kind: str = KIND) -> Path | None:
    """Return the file that ComfyUI would load under a name from any folder of a kind, or None."""
    path = folder_paths.get_full_path(kind, str(name))
    return None if path is None else Path(path)


def notify_pages(name: str) -> None:
    """Notify all open pages of a new LoRA."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(CHANGED, {"name": name})
