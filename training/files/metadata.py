"""Metadata of LoRA files: modelspec, kohya's ``ss_`` keys and this pack's own keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..families import FAMILIES, Family

STYLE_WORDS = "pastiche.style_words"
# Keys that differ between two files of the same LoRA.
DATES = frozenset({"modelspec.date", "ss_training_started_at", "ss_training_finished_at"})

_CUSTOMARY = {  # kohya's keys, with the keys under which this pack stores the same values
    "ss_steps": "pastiche.steps",
    "ss_max_train_steps": "pastiche.steps",
    "ss_learning_rate": "pastiche.learning_rate",
    "ss_seed": "pastiche.seed",
    "ss_num_train_images": "pastiche.pairs",
}

_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


@dataclass(frozen=True)
class FileMetadata:
    """Metadata that are known only when a file is saved.

    Args:
        title: Name of the file, without folder and ending.
        date: Date in ISO 8601.
        tensor_digest: SHA-256 of the tensors, hexadecimal.
        family: Model family of the base, if it is known.
        rank_and_alpha: Rank and alpha of all layers, or None if they differ.
        prediction_type: ``epsilon``, ``v`` or ``flow``; empty if unknown.
        trigger: Trigger words; empty if there are none.
        style_words: Style phrase of the training; empty if there is none.
        thumbnail: Data URI of a picture; empty if there is none.
    """

    title: str
    date: str
    tensor_digest: str
    family: Family | None = None
    rank_and_alpha: tuple[int, float] | None = None
    prediction_type: str = ""
    trigger: str = ""
    style_words: str = ""
    thumbnail: str = ""


def file_metadata(lora: Mapping[str, str], details: FileMetadata) -> dict[str, str]:
    """Return the metadata of a file: those of the LoRA, completed by those of the file.

    Keys follow the modelspec 1.0.0 of Stability AI and kohya's conventions.

    Args:
        lora: Metadata of the LoRA, which take precedence except for the file itself.
        details: Metadata of the file.
    """
    metadata = {key: value for key, value in lora.items() if key not in _STALE}
    style_words = details.style_words or metadata.get(STYLE_WORDS, "")
    trigger = details.trigger or metadata.get("modelspec.trigger_phrase", "") or style_words
    known = {
        "format": "pt",
        "modelspec.prediction_type": details.prediction_type,
        "modelspec.usage_hint": f"Trigger: {trigger}" if trigger else "",
        "ss_network_module": "networks.lora",
        **_base(family_of(lora) or details.family),
        **_size(details.rank_and_alpha),
        **{key: lora[own] for key, own in _CUSTOMARY.items() if own in lora},
    }
    if "pastiche.resolution" in lora:
        side = lora["pastiche.resolution"]
        known["modelspec.resolution"] = f"{side}x{side}"
    now = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": details.title,
        "modelspec.date": details.date,
        "modelspec.hash_sha256": f"0x{details.tensor_digest}",
        "modelspec.trigger_phrase": trigger,
        "ss_output_name": details.title,
        STYLE_WORDS: style_words,
    }
    if details.thumbnail:
        now["modelspec.thumbnail"] = details.thumbnail
    return {key: value for key, value in {**known, **metadata, **now}.items() if value}


def family_of(metadata: Mapping[str, str]) -> Family | None:
    """Return the model family named in metadata; None if it is missing or unknown."""
    architecture = metadata.get("modelspec.architecture", "")
    version = metadata.get("ss_base_model_version", "")
    for family in FAMILIES.values():
        if family.architecture == architecture or (
            not architecture and family.base_version == version
        ):
            return family
    return None


def _base(family: Family | None) -> dict[str, str]:
    if family is None:
        return {}
    return {
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "diffusers" if family.kohya_keys else "comfyui",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        "ss_base_model_version": family.base_version,
    }


def _size(rank_and_alpha: tuple[int, float] | None) -> dict[str, str]:
    if rank_and_alpha is None:
        return {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    rank, alpha = rank_and_alpha
    return {"ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as safetensors metadata: strings unchanged, other values as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
