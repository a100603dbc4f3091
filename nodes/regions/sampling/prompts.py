"""What is said in each region: its prompts, encoded, and the LoRAs that act there alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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

_READ_OF_TEXT = frozenset({"pooled_output", PROMPT})
"""Of a region's CONDITIONING, beside its text: all else is the whole picture's."""


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """What one region hears.

    Args:
        region: Its name.
        positive: Its prompt, one entry; None for the global one.
        negative: Its negative prompt, one entry; None for the global one.
        loras: LoRAs that act in the region alone, each with its strength.
    """

    region: str
    positive: Conditioning | None = None
    negative: Conditioning | None = None
    loras: tuple[tuple[Lora, float], ...] = ()


@dataclass(frozen=True, eq=False)
class RegionPrompts:
    """The prompts of several regions.

    Args:
        common_words: Words that stand before every region's prompt.
        prompts: One for each region that has any.
    """

    common_words: str = ""
    prompts: tuple[RegionPrompt, ...] = ()

    def of(self, regions: Sequence[Region]) -> tuple[RegionPrompt, ...]:
        """Return a prompt for each region; one that nothing was said of hears the global one.

        Raises:
            ValueError: A prompt is of a region that is not there.
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
        return tuple(by_name.get(name, RegionPrompt(name)) for name in names)


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
    """Return the prompts with one more.

    The text is encoded under the text encoder part of the region's own LoRAs.

    Args:
        region_prompts: The prompts so far.
        region: The region's name.
        text: Its prompt; may be empty.
        negative: Its negative prompt; may be empty.
        common_words: Words before every region's prompt; empty for those of the nodes before.
        strength: Strength of the LoRA and of the concepts' LoRAs.
        clip: The text encoder.
        lora: A LoRA that acts in the region alone.
        concepts: Concepts that act in the region alone; ``text`` may name them as ``<name>``.
        positive_conditioning: In place of ``text``.
        negative_conditioning: In place of ``negative``.

    Raises:
        ValueError: There is text without a CLIP, text and CONDITIONING at once, no name, or a
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
    loras = [(one, its_strength) for one, its_strength in loras if its_strength != 0]
    reader = None if clip is None else _under(clip, loras)
    whole = _after(common, text)
    added = RegionPrompt(
        name,
        _encoded(reader, concepts, name, "text", whole, positive_conditioning),
        _encoded(reader, concepts, name, "negative", negative, negative_conditioning),
        tuple(loras),
    )
    return replace(prompts, common_words=common, prompts=(*prompts.prompts, added))


def _after(common: str, text: str) -> str:
    """Return the text behind the common words; a region without a text hears the global prompt."""
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
    unused = sorted(set(given[0][1]) - _READ_OF_TEXT)
    if unused:
        lora = "; connect a LoRA of the region to its lora input" if "hooks" in unused else ""
        warn_on_node(
            f'region "{name}" leaves out the {", ".join(unused)} of its {what}: a region is of its '
            f"prompt's words alone, all else is the global prompt's{lora}"
        )
    return given


def _under(clip: CLIP, loras: Iterable[tuple[Lora, float]]) -> CLIP:
    """Return the CLIP with the LoRAs' text encoder layers on it."""
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
            clip = comfy.sd.load_lora_for_models(None, clip, known, 0.0, strength)[1]
    return clip
