"""Prepare an ordinary LoRA or a trained concept for fusion."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...training.files.concept import Concept
from ...training.files.concept_file import is_concept
from ...training.files.lora_state import LoraState, metadata_of
from ...training.files.metadata import STYLE_WORDS
from ..bridge.digests import content_digest
from ..bridge.node_output import warn_on_node

FUSED = "pastiche.fusion"  # metadata key of a fused LoRA: its concepts and settings, as JSON

_TRIGGERS = ("modelspec.trigger_phrase", STYLE_WORDS)
_TAGS = "ss_tag_frequency"
_NAMES = ("ss_output_name", "modelspec.title")
_PARTS = re.compile(r"[;\n]")


def concept_for_fusion(
    lora: Mapping[str, Tensor] | None,
    concepts: Sequence[Concept] | None,
    prompts: Sequence[str],
    name: str,
    strength: float,
    weight: float,
    images: Tensor | None,
) -> tuple[Concept, ...]:
    """Return the concepts to fuse, in the form of the concept socket.

    Args:
        lora: An ordinary LoRA, or None.
        concepts: Trained concepts in place of the LoRA, or None.
        prompts: Prompts that trigger it; if empty, those in the LoRA's metadata or the concept's.
        name: Name of the LoRA in the report; if empty, the one in its metadata.
        strength: Strength at which its change is reproduced.
        weight: Importance in the fusion.
        images: Pictures of it that take the place of sampled ones, or None.

    Raises:
        ValueError: Not exactly one of LoRA and concept is given, no prompt is known, or a number
            is out of range.
    """
    if lora is not None and concepts:
        raise ValueError(
            "either a LoRA or a concept must be connected, got both; disconnect one of them"
        )
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}; set for example 1")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be 0 or a positive number, got {weight}; set for example 1")
    texts = tuple(prompt.strip() for prompt in prompts if prompt.strip())
    if concepts:
        return tuple(
            replace(
                one,
                prompts=texts or one.prompts,
                strength=strength,
                weight=weight,
                images=one.images if images is None else images,
            )
            for one in concepts
        )
    if lora is None:
        raise ValueError("either a LoRA or a concept must be connected, got none; connect one")
    if is_concept(lora) and not texts:
        raise ValueError(
            "a concept file must be opened with Load Concept, got it as an ordinary LoRA without "
            "prompts; open it there, or write trigger_prompts"
        )
    phrases = _trigger_phrases(metadata_of(lora))
    known = phrases or _commonest_tag(metadata_of(lora))
    if not texts and not known and FUSED in metadata_of(lora):
        raise ValueError(
            "trigger_prompts must say how the LoRA is called up, got none and a fused file whose "
            "words need their concepts; write prompts without <name>, or connect the concepts "
            "themselves to Gradient Fusion"
        )
    if not texts and not known:
        raise ValueError(
            "trigger_prompts must say how the LoRA is called up, got none and a file that does "
            "not say it; write a prompt such as a photo of sks dog"
        )
    # Prompts need not contain the commonest tag, because it may be a whole caption.
    _warn_without_trigger(texts, phrases)
    state = LoraState(lora, metadata_of(lora))
    word = "_".join((name.strip() or _file_name(state)).split())
    return (
        Concept(
            word,
            "",
            {},
            state,
            prompts=texts or known,
            images=images,
            strength=strength,
            weight=weight,
        ),
    )


def fused_names(lora: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the concepts that a LoRA was fused from; empty for any other LoRA."""
    try:
        record = json.loads(metadata_of(lora).get(FUSED, "{}"))
        return tuple(str(one["name"]) for one in record.get("concepts", ()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()


def _trigger_phrases(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the trigger phrases in a LoRA's metadata; empty if there are none."""
    for key in _TRIGGERS:
        phrases = tuple(
            part.strip() for part in _PARTS.split(metadata.get(key, "")) if part.strip()
        )
        if phrases:
            return phrases
    return ()


def _commonest_tag(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the most frequent caption tag, from the metadata that kohya's trainers write."""
    try:
        counts: dict[str, int] = {}
        for folder in json.loads(metadata.get(_TAGS, "{}")).values():
            for tag, count in folder.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    tags = sorted((tag for tag in counts if tag), key=lambda tag: -counts[tag])
    return tuple(tags[:1])


def _warn_without_trigger(prompts: Sequence[str], known: Sequence[str]) -> None:
    """Warn on the node about prompts that have none of the known trigger words."""
    words = [word.strip().casefold() for phrase in known for word in phrase.split(",")]
    words = [word for word in words if word]
    for prompt in prompts:
        if words and not any(word in prompt.casefold() for word in words):
            warn_on_node(
                f"the trigger prompt {prompt[:80]!r} has none of the words that the LoRA's file "
                f"names ({', '.join(known)[:80]}); add one if it is to be called up"
            )


def _file_name(lora: LoraState) -> str:
    """Return a LoRA's name from its metadata, or one made of its digest."""
    for key in _NAMES:
        name = re.sub(r"[^\w.-]+", "_", lora.metadata.get(key, "")).strip("_")[:64]
        if name:
            return name
    return f"lora_{content_digest(dict(lora))[:8]}"
