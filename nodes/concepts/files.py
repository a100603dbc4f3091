"""Concepts to files and back: one LoRA file that every loader takes, the words in its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import load_embed
from torch import Tensor

from ...training.files.concept import TEXT_WIDTHS, Concept
from ...training.files.concept_file import (
    CONCEPT,
    companion_of,
    companion_tensors,
    concept_metadata,
    concept_of,
    embedding_tensors,
    is_concept,
    plain_rows,
)
from ...training.files.file_name import relative_name
from ...training.files.lora_state import LoraState
from ...training.files.metadata import family_of
from ...training.files.released_concept import ENDING as AUTHORS_ENDING
from ...training.files.released_concept import read_authors_concept
from ...training.files.tensor_file import holds, pack_tensors, read_tensors, write_new
from ..lora.files import LONGEST_HEADER, load_lora, save_lora
from ..lora.folders import (
    EMBEDDINGS,
    ENDING,
    candidates,
    existing_file,
    fingerprint,
    lora_path,
    writable_folder,
)

NO_EMBEDDING = "none"
"""The choice of an embedding for files that hold their words themselves."""

_BYTES_OF_AN_ENTRY = 250
"""Of a tensor's name, shape and place in a file's header, at most."""

_BYTES_OF_THE_REST = 60_000
"""What saving may add to the metadata: title, dates, digest, and a thumbnail of some 10 kB."""


def embedding_names() -> list[str]:
    """Return the embeddings as ComfyUI lists them, after the choice of none."""
    return [NO_EMBEDDING, *folder_paths.get_filename_list(EMBEDDINGS)]


def save_concept(
    concepts: Sequence[Concept],
    filename: str,
    precision: str,
    *,
    model: ModelPatcher | None = None,
    image: Tensor | None = None,
    embedding: bool = False,
) -> tuple[str, str]:
    """Write a concept into the first writable LoRA folder.

    The rows of its words go into the file's metadata in fp16, or, where they are too many for
    ComfyUI to show the metadata, into a companion file among the embeddings.

    Args:
        concepts: What travels on the wire, one concept.
        filename: ``name`` or ``subfolder/name``; an existing file is never overwritten.
        precision: Of the LoRA's factors.
        model: Names the base where the concept does not.
        image: Thumbnail and preview.
        embedding: Whether the mean rows are written as an ordinary embedding too.

    Returns:
        The file's name in ComfyUI's lists, and ``embedding:name`` for prompts, empty without one.

    Raises:
        ValueError: It is not one concept with a LoRA, or ``save_lora`` refuses it.
        RuntimeError: As ``save_lora`` has it.
    """
    concept = _only(concepts)
    if not concept.embeddings:
        raise ValueError(
            f"a concept file must hold words, got the ordinary LoRA {concept.name!r} without any; "
            "write it with Save LoRA (Pastiche)"
        )
    if not concept.lora:
        raise ValueError(
            f"a concept file must hold a LoRA, got <{concept.name}> of words alone; train it with "
            "a LoRA"
        )
    name = relative_name(filename.strip().removesuffix(ENDING), "filename")
    said = concept_metadata(concept)
    if _header_bytes(concept.lora, said) > LONGEST_HEADER:
        said = concept_metadata(concept, _write_embedding(name, companion_tensors(concept)))
    lora = LoraState(concept.lora, {**concept.lora.metadata, CONCEPT: said})
    saved = save_lora(
        lora, filename, precision, model=model, trigger=f"<{concept.name}>", image=image
    )
    if not embedding:
        return saved, ""
    written = _write_embedding(name, embedding_tensors(concept))
    return saved, f"embedding:{written.removesuffix(ENDING)}"


def load_concept(
    file: str, embedding: str = NO_EMBEDDING, name: str = "", class_words: str = ""
) -> tuple[Concept, ...]:
    """Return a concept of ComfyUI's list of LoRAs, as it travels on the wire.

    Args:
        file: This pack's, a released Mix-of-Show ``.pth``, or any LoRA beside an ``embedding``.
        embedding: Of ComfyUI's list, for an ordinary LoRA: its words.
        name: The word that prompts shall use; empty: what the file says, else the file's own name.
        class_words: What kind of thing it is; empty: what the file says.

    Raises:
        ValueError: It is missing, damaged, no concept, or its words are.
    """
    path = lora_path(file)
    if path.suffix.lower() == AUTHORS_ENDING:
        _require_none(embedding, file)
        rows, lora, _ = read_authors_concept(path)
        concept = Concept(name.strip() or _word(path.stem), class_words.strip(), rows, lora)
        return (concept,)
    lora = load_lora(file)
    if not is_concept(lora):
        word = name.strip() or _word(PurePosixPath(embedding).stem)
        return (Concept(word, class_words.strip(), _embedding(embedding, lora, file), lora),)
    _require_none(embedding, file)
    companion = companion_of(lora)
    concept = concept_of(lora, _companion(companion, file) if companion else None)
    return (
        replace(
            concept,
            name=name.strip() or concept.name,
            class_words=class_words.strip() or concept.class_words,
        ),
    )


def concept_fingerprint(file: str, embedding: str = NO_EMBEDDING) -> object:
    """Return what changes when a concept's file or its embedding does."""
    return fingerprint(file), fingerprint(embedding, EMBEDDINGS)


def _only(concepts: Sequence[Concept]) -> Concept:
    if len(concepts) != 1:
        raise ValueError(
            f"one concept must be saved at a time, got {len(concepts)}; connect each to a Save "
            "Concept of its own"
        )
    return concepts[0]


def _word(stem: str) -> str:
    """Return a file's own name as one word."""
    return "_".join(stem.split())


def _header_bytes(lora: LoraState, said: str) -> int:
    """Return how long a file's header may become."""
    metadata = sum(len(key) + len(value) + 6 for key, value in lora.metadata.items())
    return metadata + len(said.encode()) + _BYTES_OF_AN_ENTRY * len(lora) + _BYTES_OF_THE_REST


def _write_embedding(name: PurePosixPath, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors among ComfyUI's embeddings and return the file's name there."""
    packed = pack_tensors(dict(tensors))
    metadata = {"format": "pt"}
    folder = writable_folder(name.parent, EMBEDDINGS)
    for candidate in candidates(name):
        existing = existing_file(candidate, EMBEDDINGS)
        if existing is None:
            try:
                write_new(folder / candidate.name, packed.header(metadata), packed.data)
            except FileExistsError:
                continue
        elif not holds(existing, packed, metadata, ()):
            continue
        return str(candidate)
    raise AssertionError("unreachable: names never run out")


def _companion(companion: str, file: str) -> dict[str, Tensor]:
    path = existing_file(PurePosixPath(companion), EMBEDDINGS)
    if path is None:
        raise ValueError(
            f"the words of {file!r} must lie in {companion!r} in an embeddings folder, got no such "
            "file; put the two files side by side as they were saved"
        )
    return read_tensors(Path(path))


def _embedding(embedding: str, lora: LoraState, file: str) -> dict[str, Tensor]:
    """Return the rows of an ordinary embedding, as ComfyUI's own prompts read it."""
    if embedding == NO_EMBEDDING:
        raise ValueError(
            f"{file!r} must say its words, got an ordinary LoRA; choose the embedding that belongs "
            "to it, or open it with Load LoRA (Pastiche)"
        )
    family = family_of(lora.metadata)
    encoders = TEXT_WIDTHS if family is None else family.text_encoders
    folders = folder_paths.get_folder_paths(EMBEDDINGS)
    found = {}
    for encoder in encoders:
        try:
            rows = load_embed(embedding, folders, TEXT_WIDTHS[encoder], encoder)
        except Exception:  # ComfyUI's reader trips in many ways over files that are no embedding
            rows = None
        if isinstance(rows, Tensor) and rows.shape[-1:] == (TEXT_WIDTHS[encoder],):
            found[encoder] = rows
    if family is None and {"t5xxl", "umt5xxl"} <= set(found):  # equally wide: SD3's and Flux's
        del found["umt5xxl"]
    if not found:
        raise ValueError(
            f"the embedding must be one for {', '.join(encoders) or 'a family with concepts'}, got "
            f"{embedding!r}, which has none or cannot be read; choose the one that was made with "
            f"{file!r}"
        )
    return plain_rows(found, _word(PurePosixPath(embedding).stem))


def _require_none(embedding: str, file: str) -> None:
    if embedding != NO_EMBEDDING:
        raise ValueError(
            f"embedding must be {NO_EMBEDDING} for a file that holds its words itself, got "
            f"{embedding!r} beside {file!r}; choose {NO_EMBEDDING}"
        )
