"""Encode the prompts of regions, and collect the LoRAs that act in one region only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import comfy.lora
import comfy.sd
from comfy.sd import CLIP
from torch import Tensor

from ....lora_ops import Region
from ....lora_ops.keys import changes_text_encoder, parse_key, parts_by_layer
from ....training.files.concept import Concept
from ....training.files.lora_file import sound
from ...bridge.conditioning import Conditioning, encode_prompt
from ...bridge.node_output import warn_on_node
from ...text.concept_prompt import PROMPT, encode_concept_prompt

Lora = Mapping[str, Tensor]

# Options of a region's CONDITIONING that are used; all others are those of the whole picture.
_USED_OPTIONS = frozenset({"pooled_output", PROMPT})


@dataclass(frozen=True, eq=False)
class RegionConditioning:
    """The conditioning and the LoRAs of one region.

    Args:
        region: Name of the region.
        positive: Conditioning of the prompt, one entry; None for the global prompt.
        negative: Conditioning of the negative prompt, one entry; None for the global one.
        loras: LoRAs that act in this region only, each with its strength.
    """

    region: str
    positive: Conditioning | None = None
    negative: Conditioning | None = None
    loras: tuple[tuple[Lora, float], ...] = ()


@dataclass(frozen=True, eq=False)
class RegionPrompts:
    """The prompts of several regions.

    Args:
        common_words: Words before every region's prompt.
        prompts: Conditioning of each region that has a prompt or a LoRA.
    """

    common_words: str = ""
    prompts: tuple[RegionConditioning, ...] = ()

    def for_regions(self, regions: Sequence[Region]) -> tuple[RegionConditioning, ...]:
        """Return the conditioning of each region; regions without a prompt use the global one.

        Raises:
            ValueError: A prompt names a region that does not exist.
        """
        names = [region.name for region in regions]
        for prompt in self.prompts:
            if prompt.region not in names:
                raise ValueError(
                    f'every region prompt must name a region, got "{prompt.region}", where there '
                    f"is {', '.join(f'{name!r}' for name in names) or 'none'}; correct the name or "
                    "draw the region"
                )
        by_name = {prompt.region: prompt for prompt in self.prompts}
        return tuple(by_name.get(name, RegionConditioning(name)) for name in names)


def with_region_prompt(
    region_prompts: RegionPrompts | None,
    *,
    region: str,
    text: str = "",
    negative: str = "",
    common_words: str = "",
    strength: float = 1.0,
    clip: CLIP | None = None,
    lora: Lora | None = None,
    concepts: Sequence[Concept] = (),
    positive_conditioning: Conditioning | None = None,
    negative_conditioning: Conditioning | None = None,
) -> RegionPrompts:
    """Return the prompts with the prompt of one more region.

    The text is encoded with the text encoder layers of the region's LoRAs.

    Args:
        region_prompts: Prompts of other regions.
        region: Name of the region.
        text: Prompt of the region; may be empty.
        negative: Negative prompt of the region; may be empty.
        common_words: Words before every region's prompt; empty for those of ``region_prompts``.
        strength: Strength of the LoRA and of the concepts' LoRAs.
        clip: The text encoder.
        lora: LoRA that acts in this region only.
        concepts: Concepts that act in this region only; ``text`` may name them as ``<name>``.
        positive_conditioning: Conditioning that replaces ``text``.
        negative_conditioning: Conditioning that replaces ``negative``.

    Raises:
        ValueError: There is a text without a CLIP, both a text and CONDITIONING, no name, or a
            region that has a prompt already.
    """
    prompts = region_prompts or RegionPrompts()
    name = region.strip()
    if not name:
        raise ValueError(
            "a region prompt must name its region, got an empty name; write the name that the "
            "region has in Regions"
        )
    if name in (prompt.region for prompt in prompts.prompts):
        raise ValueError(
            f'each region must have one prompt, got two for "{name}"; write all of it into one '
            "node, or correct the name"
        )
    common = common_words.strip() or prompts.common_words
    if common and positive_conditioning is not None:
        warn_on_node(
            f'the common words do not stand before the CONDITIONING of region "{name}"; write them '
            "into its text where it is encoded"
        )
    loras = [] if lora is None else [(sound(lora), strength)]
    for concept in concepts:
        if concept.lora:
            loras.append((sound(concept.lora), strength * concept.strength))
    loras = [(one, own_strength) for one, own_strength in loras if own_strength != 0]
    region_clip = None if clip is None else _with_text_loras(clip, loras)
    whole = _with_common_words(common, text)
    added = RegionConditioning(
        name,
        _encoded(region_clip, concepts, name, "text", whole, positive_conditioning),
        _encoded(region_clip, concepts, name, "negative", negative, negative_conditioning),
        tuple(loras),
    )
    return replace(prompts, common_words=common, prompts=(*prompts.prompts, added))


def _with_common_words(common: str, text: str) -> str:
    """Return the text after the common words; an empty text stays empty."""
    return f"{common} {text.strip()}".strip() if text.strip() else ""


def _encoded(
    clip: CLIP | None,
    concepts: Sequence[Concept],
    name: str,
    what: str,
    text: str,
    given: Conditioning | None,
) -> Conditioning | None:
    if text.strip() and given is not None:
        raise ValueError(
            f'region "{name}" must have its {what} as a text or as CONDITIONING, got both; empty '
            "the text or disconnect the other"
        )
    if given is not None:
        return _single(given, name, what)
    if not text.strip():
        return None
    if clip is None:
        raise ValueError(
            f'region "{name}" must have a CLIP that reads its {what}, got none; connect the '
            "checkpoint's CLIP, or CONDITIONING in place of the text"
        )
    if concepts:
        return _single(encode_concept_prompt(clip, concepts, text), name, what)
    return _single(encode_prompt(clip, text), name, what)


def _single(given: Conditioning, name: str, what: str) -> Conditioning:
    if len(given) != 1 or given[0][0].shape[0] != 1:
        raise ValueError(
            f'the {what} of region "{name}" must be one prompt, got '
            f"{len(given)} combined parts of {', '.join(str(len(one[0])) for one in given)}; "
            "connect one text prompt, and a CLIP without scheduled hooks"
        )
    unused = sorted(set(given[0][1]) - _USED_OPTIONS)
    if unused:
        lora = "; connect a LoRA of the region to its lora input" if "hooks" in unused else ""
        warn_on_node(
            f'region "{name}" leaves out the {", ".join(unused)} of its {what}: a region is of its '
            f"prompt's words alone, all else is the global prompt's{lora}"
        )
    return given


def _with_text_loras(clip: CLIP, loras: Iterable[tuple[Lora, float]]) -> CLIP:
    """Return the CLIP with the text encoder layers of LoRAs."""
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    for lora, strength in loras:
        text = {
            key: value
            for key, value in lora.items()
            if (found := parse_key(key)) is not None and changes_text_encoder(found.layer)
        }
        unknown = [layer for layer in parts_by_layer(text) if layer not in names]
        if unknown:
            warn_on_node(
                f"{len(unknown)} text encoder layers of a region's LoRA are not in this CLIP and "
                f"are left out (first: {unknown[0][:80]!r})"
            )
        known = {
            key: text[key]
            for layer, parts in parts_by_layer(text).items()
            if layer in names
            for key in parts.values()
        }
        if known:
            # ComfyUI returns None for the CLIP only if it gets none.
            clip = cast(CLIP, comfy.sd.load_lora_for_models(None, clip, known, 0.0, strength)[1])
    return clip
