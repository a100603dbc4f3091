"""LoRAs to files and back: names, folders, metadata and the rule that nothing is overwritten."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.files.file_name import relative_name
from ...training.files.lora_file import in_precision, rank_and_alpha, read_lora
from ...training.files.lora_state import LoraState, metadata_of
from ...training.files.metadata import DATES, FileMetadata, file_metadata
from ...training.files.tensor_file import holds, pack_tensors, write_new
from ..bridge.families import identify, prediction_type
from .folders import ENDING, announce, candidates, lora_path, taken_by, writable_folder
from .preview import PREVIEW_ENDING, thumbnail, write_preview

LONGEST_HEADER = 900_000  # ComfyUI shows no metadata of a file whose header exceeds 1 MiB


def load_lora(name: str) -> LoraState:
    """Return a LoRA of ComfyUI's list.

    Raises:
        ValueError: It is missing, damaged or no LoRA.
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

    An existing file is never overwritten: the name gets a number, unless the file holds the
    same tensors and metadata, which is then what is returned.

    Args:
        lora: What travels on the wire.
        filename: ``name`` or ``subfolder/name``.
        precision: Of the factors, one of ``lora_file.PRECISIONS``.
        model: Names the base where the LoRA's own metadata do not.
        trigger: Words that call the LoRA up.
        style_words: The style phrase it was trained with.
        image: Thumbnail and preview.

    Raises:
        ValueError: The name or the LoRA is no good.
        RuntimeError: No folder can be written to, or the disk is full; nothing is written.
    """
    name = relative_name(filename.strip().removesuffix(ENDING), "filename")
    packed = pack_tensors(in_precision(lora, precision))
    facts = FileMetadata(
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
    metadata = file_metadata(metadata_of(lora), facts)
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
        existing = taken_by(candidate)
        if existing is not None and holds(existing, packed, metadata, DATES):
            write_preview(existing, image)
            return str(Path(candidate))
        if existing is None and not _blocked(path, image):
            try:
                write_new(path, header, packed.data)
            except FileExistsError:
                continue
            announce(str(Path(candidate)))
            write_preview(path, image)
            logging.info("Pastiche: saved %s", path)
            return str(Path(candidate))
    raise AssertionError("unreachable: names never run out")


def saved_files(filename: str | None) -> object:
    """Return what changes when a saved file is removed or another is put in its place.

    Args:
        filename: As Save LoRA has it; None where it comes from another node.

    Returns:
        Times and sizes of the files of that name and its numbers; without any, what is never the
        same twice, so that the node writes the file again.
    """
    if filename is None:
        return None
    name = relative_name(filename.strip().removesuffix(ENDING), "filename")
    found = [path.stat() for path in takewhile(bool, map(taken_by, candidates(name)))]
    return [(status.st_mtime_ns, status.st_size) for status in found] or float("nan")


def _blocked(path: Path, image: Tensor | None) -> bool:
    """Return whether something lies under a file's or its preview's name."""
    return path.exists() or (image is not None and path.with_suffix(PREVIEW_ENDING).exists())
