"""Make the conditioning entries of style rows: the positive entries with the style's text."""

from __future__ import annotations

import logging
import uuid

import comfy.sampler_helpers

from ...training.families import FAMILIES
from ..bridge.conditioning import Conditioning
from ..bridge.sampling import Entry
from ..text.concept_prompt import PROMPT

# Keys that ComfyUI's text encoders (0.30) write for models of other families, and this pack's key.
_OTHER_TEXT_KEYS = frozenset(
    {
        "attention_mask_mt5xl",
        "conditioning_mt5xl",
        "conditioning_llama3",
        "conditioning_byt5small",
        "conditioning_lyrics",
        "t5xxl_ids",
        "t5xxl_weights",
        "text_input_ids",
        "minimax_token_tags",
        "unprocessed_ltxav_embeds",
        # the same prompt, encoded for a ControlNet that uses another text encoder
        "cross_attn_controlnet",
        "pooled_output_controlnet",
        PROMPT,
    }
)
# All keys of an entry that depend on the prompt's text.
TEXT_KEYS = _OTHER_TEXT_KEYS.union(*(family.text_keys for family in FAMILIES.values()))

_INTERNAL_KEYS = frozenset({"model_conds", "uuid"})  # set by ComfyUI in every entry


def style_rows(positive: list[Entry], style: Conditioning) -> list[Entry]:
    """Return one style entry per positive entry: a copy with the style prompt's text.

    Control, area, mask, timesteps, strength, hooks, guidance, concat latents, sizes and keys of
    other packs come from the positive entry. Both entries share one control object, because rows
    with the same object fit into one forward pass.

    Args:
        positive: Entries of a sampler before it encodes them.
        style: CONDITIONING of the style prompt: one entry for all positive entries, or one each.

    Raises:
        ValueError: The numbers of entries don't match.
    """
    texts = comfy.sampler_helpers.convert_cond(style)
    if len(texts) not in (1, len(positive)):
        raise ValueError(
            "the style prompt must be one prompt, or combined of as many parts as the positive, "
            f"got {len(texts)} parts for {len(positive)}; connect one style prompt"
        )
    _warn_of_unused(positive, texts)
    pairs = zip(positive, texts * len(positive) if len(texts) == 1 else texts, strict=True)
    return [_style_row(entry, text) for entry, text in pairs]


def _style_row(entry: Entry, text: Entry) -> Entry:
    row = {key: value for key, value in entry.items() if key not in TEXT_KEYS}
    row |= {key: value for key, value in text.items() if key in TEXT_KEYS}
    row["model_conds"] = dict(entry["model_conds"])
    # Some models treat a positive prompt differently. ComfyUI takes the type from the name of the
    # list, which is not "positive" for a style.
    row.setdefault("prompt_type", "positive")
    row["uuid"] = uuid.uuid4()
    return row


def _warn_of_unused(positive: list[Entry], texts: list[Entry]) -> None:
    known = TEXT_KEYS | _INTERNAL_KEYS | {key for entry in positive for key in entry}
    unused = sorted({key for text in texts for key in text} - known)
    if unused:
        logging.warning(
            "Pastiche: the style prompt's %s has no effect; a style follows the positive prompt "
            "in everything but the text.",
            ", ".join(unused),
        )
