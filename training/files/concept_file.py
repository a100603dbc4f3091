"""Store a concept's words in the metadata of a LoRA file, or as tensors in a companion file."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .concept import Concept, check_embeddings, concept_name, stored_rows
from .lora_state import LoraState, metadata_of

CONCEPT = "pastiche.concept"  # metadata key of a concept's name, class and embeddings, as JSON

# Key in that JSON of the name and digest of a companion file, used if there are too many
# embeddings.
COMPANION = "companion"

# Suffix of the key of a text encoder's ``(word, layer, dim)`` in a companion file. The encoder's
# own name is the key of each word's mean embedding, which ComfyUI reads.
ROWS = ".rows"

_KEYS = ("name", "class_words", "prompts")


def concept_metadata(concept: Concept, companion: str = "") -> str:
    """Return the JSON text that describes a concept in the metadata of a LoRA file.

    Args:
        concept: The concept; its embeddings are rounded to fp16 and encoded as base64.
        companion: Name of the companion file with the embeddings; empty to put them into this text.
    """
    said: dict[str, Any] = {
        "name": concept.name,
        "class_words": concept.class_words,
        "prompts": list(concept.prompts),
    }
    if companion:
        said[COMPANION] = {"file": companion, "digest": concept.digest}
    else:
        said["embeddings"] = {
            encoder: {
                "shape": list(rows.shape),
                "fp16": base64.b64encode(_bytes(rows)).decode(),
            }
            for encoder, rows in sorted(concept.embeddings.items())
        }
    return json.dumps(said, separators=(",", ":"))


def companion_of(lora: Mapping[str, Tensor]) -> str:
    """Return the name of the companion file; empty if the metadata contain the embeddings.

    Raises:
        ValueError: The metadata don't describe a concept.
    """
    companion = _entry(lora).get(COMPANION)
    if companion is None:
        return ""
    if not isinstance(companion, dict) or not isinstance(companion.get("file"), str):
        raise _damaged("its companion file has no name")
    return companion["file"]


def is_concept(lora: Mapping[str, Tensor]) -> bool:
    """Return whether the metadata of a LoRA describe a concept."""
    return CONCEPT in metadata_of(lora)


def concept_of(lora: LoraState, companion: Mapping[str, Tensor] | None = None) -> Concept:
    """Return the concept stored in a LoRA file.

    Args:
        lora: Contents of the file; the concept's metadata entry is removed from the result's LoRA.
        companion: Tensors of the companion file, if ``companion_of`` names one.

    Raises:
        ValueError: The file is damaged, or the companion belongs to another concept.
    """
    said = _entry(lora)
    if not all(isinstance(said.get(key), str) for key in _KEYS[:2]):
        raise _damaged("its name or class is missing")
    prompts = said.get("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise _damaged("its prompts are not texts")
    if companion is None:
        rows = {name: _rows(entry) for name, entry in _table(said.get("embeddings")).items()}
        check_embeddings(rows, concept_name(said["name"]))
    else:
        rows = companion_rows(companion)
    metadata = {key: value for key, value in lora.metadata.items() if key != CONCEPT}
    concept = Concept(
        name=concept_name(said["name"]),
        class_words=said["class_words"],
        embeddings=rows,
        lora=LoraState(lora, metadata),
        prompts=tuple(prompts),
    )
    expected = _table(said.get(COMPANION, {})).get("digest")
    if companion is not None and concept.digest != expected:
        raise ValueError(
            f"the companion file of <{concept.name}> must hold its own rows, got those of another "
            "concept; put back the file that was saved with it"
        )
    return concept


def companion_tensors(concept: Concept) -> dict[str, Tensor]:
    """Return the tensors of a companion file: all embeddings, and their means for ComfyUI."""
    rows = {f"{name}{ROWS}": stored_rows(rows) for name, rows in concept.embeddings.items()}
    return {**embedding_tensors(concept), **rows}


def embedding_tensors(concept: Concept) -> dict[str, Tensor]:
    """Return each word's mean embedding in fp16, in ComfyUI's ``embedding:`` format."""
    return {name: stored_rows(rows) for name, rows in concept.mean_rows().items()}


def companion_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the embeddings in a companion file, ``(word, layer, dim)`` by text encoder, fp32."""
    return {
        key.removesuffix(ROWS): rows.float() for key, rows in tensors.items() if key.endswith(ROWS)
    }


def plain_rows(embeddings: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return an ordinary embedding as that of a concept, which all layers share.

    Args:
        embeddings: ``(word, dim)`` or ``(dim,)`` by text encoder.
        name: Name of the concept, for messages.

    Raises:
        ValueError: The embeddings are invalid.
    """
    rows = {
        encoder: tensor.detach().float().reshape(-1, 1, tensor.shape[-1])
        for encoder, tensor in embeddings.items()
    }
    check_embeddings(rows, name)
    return rows


def _bytes(rows: Tensor) -> bytes:
    return stored_rows(rows).numpy().astype("<f2").tobytes()


def _entry(lora: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        said = json.loads(metadata_of(lora).get(CONCEPT, "null"))
    except (ValueError, RecursionError) as error:
        raise _damaged("its words cannot be read") from error
    if not isinstance(said, dict):
        raise ValueError(
            "a concept must come from Train Concept or Load Concept, got an ordinary LoRA; "
            "choose the embedding that belongs to it, or use Load LoRA (Pastiche)"
        )
    return said


def _table(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise _damaged("it has no embeddings")
    return entry


def _rows(entry: object) -> Tensor:
    shape, text = _table(entry).get("shape"), _table(entry).get("fp16")
    if not isinstance(shape, list) or len(shape) != 3 or not isinstance(text, str):
        raise _damaged("an embedding has no shape or no numbers")
    if not all(type(size) is int and size > 0 for size in shape):
        raise _damaged("an embedding has no shape or no numbers")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged("an embedding's numbers cannot be read") from error
    if len(data) != 2 * math.prod(shape):
        raise _damaged(f"an embedding has {len(data)} bytes for the shape {tuple(shape)}")
    return torch.frombuffer(bytearray(data), dtype=torch.float16).reshape(shape).float()


def _damaged(why: str) -> ValueError:
    return ValueError(f"a concept file must be whole, but {why}; choose another file")
