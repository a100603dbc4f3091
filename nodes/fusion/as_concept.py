"""An ordinary LoRA, or a trained concept, as what is fused: how strong, how important, how called."""

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

FUSED = "pastiche.fusion"
"""The metadata of a fused LoRA under which it says, as JSON, what it was fused from."""

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
    """Return what is to be fused, as it travels on the wire.

    Args:
        lora: An ordinary LoRA; or None.
        concepts: Trained ones instead; or None.
        prompts: That call it up. None: those that the LoRA's file says, or the concept's own.
        name: Of the LoRA in the report; empty: its file's.
        strength: At which its change is to be reproduced.
        weight: Its importance.
        images: Of it, seen in place of drawn ones; or None.

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
    # The commonest part of captions may be a whole caption, so prompts need not hold it.
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
    """Return the names of the concepts that a LoRA was fused from, none where it was not."""
    try:
        said = json.loads(metadata_of(lora).get(FUSED, "{}"))
        return tuple(str(one["name"]) for one in said.get("concepts", ()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()


def _trigger_phrases(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words that call a LoRA up, where its metadata says them."""
    for key in _TRIGGERS:
        phrases = tuple(
            part.strip() for part in _PARTS.split(metadata.get(key, "")) if part.strip()
        )
        if phrases:
            return phrases
    return ()


def _commonest_tag(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the part of its captions that a LoRA saw most, as kohya's trainers write it."""
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
    words = [word.strip().casefold() for phrase in known for word in phrase.split(",")]
    words = [word for word in words if word]
    for prompt in prompts:
        if words and not any(word in prompt.casefold() for word in words):
            warn_on_node(
                f"the trigger prompt {prompt[:80]!r} has none of the words that the LoRA's file "
                f"names ({', '.join(known)[:80]}); add one if it is to be called up"
            )


def _file_name(lora: LoraState) -> str:
    """Return a LoRA's name by its metadata, else a short digest of it."""
    for key in _NAMES:
        name = re.sub(r"[^\w.-]+", "_", lora.metadata.get(key, "")).strip("_")[:64]
        if name:
            return name
    return f"lora_{content_digest(dict(lora))[:8]}"
