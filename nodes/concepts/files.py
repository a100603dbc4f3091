"""Save and load concepts as LoRA files with the words in their metadata."""

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

NO_EMBEDDING = "none"  # choice of an embedding for files that contain their words

# Upper bounds for the size of a file's header.
_BYTES_OF_AN_ENTRY = 250  # name, shape and offsets of one tensor
_BYTES_OF_THE_REST = 60_000  # metadata that saving adds: title, dates, digest, 10 kB of thumbnail


def embedding_names() -> list[str]:
    """Return the choice of no embedding, then the embeddings as ComfyUI lists them."""
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

    The embeddings of its words are stored in the file's metadata in fp16. If they would make the
    metadata too large for ComfyUI to show, they are stored in a companion file in the embeddings
    folder.

    Args:
        concepts: Value of the concept socket; it must be a single concept.
        filename: ``name`` or ``subfolder/name``; an existing file is never overwritten.
        precision: Precision of the LoRA's factors.
        model: Base model, for a concept that does not record it.
        image: Picture for the thumbnail and the preview.
        embedding: Whether each word's mean embedding is also written as an ordinary embedding.

    Returns:
        Name of the file in ComfyUI's lists, and ``embedding:name`` for prompts or an empty string.

    Raises:
        ValueError: The value is not one concept with words and a LoRA, or ``save_lora`` refuses it.
        RuntimeError: ``save_lora`` cannot write the file.
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
    metadata = concept_metadata(concept)
    if _header_bytes(concept.lora, metadata) > LONGEST_HEADER:
        metadata = concept_metadata(concept, _write_embedding(name, companion_tensors(concept)))
    lora = LoraState(concept.lora, {**concept.lora.metadata, CONCEPT: metadata})
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
    """Return a concept from ComfyUI's list of LoRAs, as a value of the concept socket.

    Args:
        file: Concept file of this pack, released Mix-of-Show ``.pth``, or any LoRA together with an
            ``embedding``.
        embedding: Name in ComfyUI's list of the embedding with an ordinary LoRA's words.
        name: Name of the concept in prompts; if empty, the recorded name or the file's.
        class_words: Class of the concept; if empty, the recorded one.

    Raises:
        ValueError: The file or its words are missing or damaged, or the file is not a concept.
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
    """Return a value that changes whenever a concept's file or its embedding changes."""
    return fingerprint(file), fingerprint(embedding, EMBEDDINGS)


def _only(concepts: Sequence[Concept]) -> Concept:
    if len(concepts) != 1:
        raise ValueError(
            f"one concept must be saved at a time, got {len(concepts)}; connect each to a Save "
            "Concept of its own"
        )
    return concepts[0]


def _word(stem: str) -> str:
    """Return the name of a file as one word."""
    return "_".join(stem.split())


def _header_bytes(lora: LoraState, concept: str) -> int:
    """Return an upper bound for the size of a file's header with this metadata of a concept."""
    metadata = sum(len(key) + len(value) + 6 for key, value in lora.metadata.items())
    return metadata + len(concept.encode()) + _BYTES_OF_AN_ENTRY * len(lora) + _BYTES_OF_THE_REST


def _write_embedding(name: PurePosixPath, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors into the first writable embeddings folder and return the name of the file."""
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
    """Return the tensors of a concept's companion file among the embeddings."""
    path = existing_file(PurePosixPath(companion), EMBEDDINGS)
    if path is None:
        raise ValueError(
            f"the words of {file!r} must lie in {companion!r} in an embeddings folder, got no such "
            "file; put the two files side by side as they were saved"
        )
    return read_tensors(Path(path))


def _embedding(embedding: str, lora: LoraState, file: str) -> dict[str, Tensor]:
    """Return the rows of an ordinary embedding by text encoder, as ComfyUI's prompts read it."""
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
        except Exception:  # ComfyUI's reader fails in many ways on other files
            rows = None
        if isinstance(rows, Tensor) and rows.shape[-1:] == (TEXT_WIDTHS[encoder],):
            found[encoder] = rows
    if family is None and {"t5xxl", "umt5xxl"} <= set(
        found
    ):  # T5 of SD3 and Flux has the same width and is more common
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
