"""Load and save LoRA files with their metadata; existing files are never overwritten."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.files.file_name import relative_name
from ...training.files.lora_file import in_precision, rank_and_alpha, read_lora
from ...training.files.lora_state import LoraState, metadata_of
from ...training.files.metadata import DATES, FileMetadata, file_metadata
from ...training.files.tensor_file import holds, pack_tensors, write_new
from ..bridge.families import identify, prediction_type
from .folders import ENDING, candidates, existing_file, lora_path, notify_pages, writable_folder
from .preview import PREVIEW_ENDING, thumbnail, write_preview

LONGEST_HEADER = 900_000  # ComfyUI shows no metadata of a file whose header exceeds 1 MiB


def load_lora(name: str) -> LoraState:
    """Return a LoRA by its name in ComfyUI's list.

    Raises:
        ValueError: The file is missing, damaged or not a LoRA.
    """
    return read_lora(lora_path(name))


def save_lora(
    lora: Mapping[str, Tensor],
    filename: str,
    precision: str,
    *,
    model: ModelPatcher | None = None,
    trigger: str = "",
    style_words: str = "",
    image: Tensor | None = None,
) -> str:
    """Write a LoRA into the first writable LoRA folder and return its name in ComfyUI's lists.

    An existing file is never overwritten. If it has the same tensors and metadata, its name is
    returned; otherwise a number is appended to the new name.

    Args:
        lora: Tensors of the LoRA, with or without metadata.
        filename: ``name`` or ``subfolder/name``.
        precision: Precision of the factors, one of ``lora_file.PRECISIONS``.
        model: Base model, used if the LoRA's metadata do not name one.
        trigger: Trigger words.
        style_words: Style phrase of the training.
        image: Picture for the thumbnail and the preview.

    Raises:
        ValueError: The name or the LoRA is not valid.
        RuntimeError: No folder can be written to, or the disk is full; nothing is written.
    """
    name = relative_name(filename.strip().removesuffix(ENDING), "filename")
    packed = pack_tensors(in_precision(lora, precision))
    details = FileMetadata(
        title=name.name,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tensor_digest=packed.digest,
        family=None if model is None else identify(model),
        rank_and_alpha=rank_and_alpha(lora),
        prediction_type="" if model is None else prediction_type(model),
        trigger=trigger.strip(),
        style_words=style_words.strip(),
        thumbnail=thumbnail(image),
    )
    metadata = file_metadata(metadata_of(lora), details)
    header = packed.header(metadata)
    if len(header) > LONGEST_HEADER:
        longest = max(metadata, key=lambda key: len(metadata[key]))
        raise ValueError(
            f"metadata must stay below {LONGEST_HEADER // 1000} kB, got {len(header) // 1000} kB "
            f"with the most in {longest!r}; shorten it"
        )
    folder = writable_folder(name.parent)
    for candidate in candidates(name):
        path = folder / candidate.name
        existing = existing_file(candidate)
        if existing is not None and holds(existing, packed, metadata, DATES):
            write_preview(existing, image)
            return str(Path(candidate))
        if existing is None and not _is_taken(path, image):
            try:
                write_new(path, header, packed.data)
            except FileExistsError:
                continue
            notify_pages(str(Path(candidate)))
            write_preview(path, image)
            logging.info("Pastiche: saved %s", path)
            return str(Path(candidate))
    raise AssertionError("unreachable: names never run out")


def saved_files_fingerprint(filename: str | None) -> object:
    """Return a value that changes if a saved file is removed or replaced.

    Args:
        filename: Value of the node's input; None if it is connected to another node.

    Returns:
        Times and sizes of all files with this name, numbered ones included. Without any file it is
        NaN, which never equals itself, so that the node runs and writes the file again.
    """
    if filename is None:
        return None
    name = relative_name(filename.strip().removesuffix(ENDING), "filename")
    found: list[tuple[int, int]] = []
    for candidate in candidates(name):
        path = existing_file(candidate)
        if path is None:
            break
        status = path.stat()
        found.append((status.st_mtime_ns, status.st_size))
    return found or float("nan")


def _is_taken(path: Path, image: Tensor | None) -> bool:
    """Return whether the path of a file or of its preview already exists."""
    return path.exists() or (image is not None and path.with_suffix(PREVIEW_ENDING).exists())
