"""Choose the text that each row of a model call uses in each region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from comfy.conds import CONDRegular
from comfy.samplers import add_area_dims
from torch import Tensor

from ...bridge.conditioning import Conditioning
from ...bridge.sampling import OWN_PROMPT, POSITIVE, Entry
from ...bridge.sampling import STYLE_KEY as STYLES
from ...text.concept_prompt import PROMPT
from ...text.layer_contexts import LAYERS
from ..layout.region_maps import Area
from .prompts import RegionConditioning

NEGATIVE = "negative"  # name of the negative prompt's list in ComfyUI's guiders

_MAX_REPEATS = 4  # as in ComfyUI, a text is repeated at most this often to match another length

Prompt = TypeVar("Prompt")

# A model's preprocessing of a prompt's context ``(1, token, dim)``, such as padding.
Preprocessing = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class EncodedText:
    """One prompt's context for the layers; compared by identity.

    Args:
        context: ``(batch, token, dim)``, or ``(batch, layer, token, dim)``.
    """

    context: Tensor

    def at(self, layer: int, row: int, like: Tensor) -> Tensor:
        """Return the context ``(token, dim)`` of a row at a layer, on the device of ``like``."""
        own = self.context[row % self.context.shape[0]]
        return (own[layer] if own.ndim == 3 else own).to(like)


@dataclass(frozen=True, eq=False)
class EntryPrompts:
    """The region prompts of one conditioning entry.

    Args:
        texts: Text for each region; None for the entry's own prompt.
        area: Part of the latent that the entry predicts; None for the whole latent.
        regional: Whether regions act in the entry's rows.
    """

    texts: tuple[EncodedText | None, ...]
    area: Area | None
    regional: bool = True

    def index_cond(self, index: int, own: int, repeats: bool) -> CONDEntryIndex:
        """Return the condition that marks the entry's rows in a model call.

        Args:
            index: Index of the entry.
            own: Number of tokens of the entry's own prompt.
            repeats: Whether the texts of a call are repeated to a common length.
        """
        lengths = tuple(own if text is None else text.context.shape[-2] for text in self.texts)
        return CONDEntryIndex(torch.tensor([[index]]), lengths if repeats else ())


@dataclass(frozen=True, eq=False)
class RegionTexts:
    """The texts of all regions, made once for a run.

    Args:
        positive: Text of each region for positive prompts; None for the global prompt.
        negative: Text of each region for negative prompts; None for the global prompt.
        has_lora: Whether each region has a LoRA. Such a region needs a text even without a prompt,
            because its LoRA changes the keys of the global prompt there.
    """

    positive: tuple[EncodedText | None, ...]
    negative: tuple[EncodedText | None, ...]
    has_lora: tuple[bool, ...]

    @classmethod
    def of(cls, prompts: Sequence[RegionConditioning], preprocess: Preprocessing) -> RegionTexts:
        """Return the texts of region prompts.

        Args:
            prompts: One prompt for each region.
            preprocess: The model's preprocessing of a context before its network.
        """
        return cls(
            tuple(_text(prompt.positive, preprocess) for prompt in prompts),
            tuple(_text(prompt.negative, preprocess) for prompt in prompts),
            tuple(bool(prompt.loras) for prompt in prompts),
        )

    def for_entry(self, name: str, entry: Entry, dimensions: int) -> EntryPrompts:
        """Return the region prompts of an entry that the sampler has encoded.

        Args:
            name: Name of the entry's list in the guider.
            entry: The entry, with its area in latent pixels.
            dimensions: Number of dimensions of the latent without batch and channel.
        """
        prompts = prompts_for(name, self.positive, self.negative)
        own = None
        if any(lora and text is None for lora, text in zip(self.has_lora, prompts, strict=True)):
            conds = entry["model_conds"]
            own = EncodedText((conds[LAYERS] if LAYERS in conds else conds["c_crossattn"]).cond)
        texts = tuple(
            own if text is None and lora else text
            for text, lora in zip(prompts, self.has_lora, strict=True)
        )
        return EntryPrompts(texts, _area(entry, dimensions), not entry.get(OWN_PROMPT, False))


def prompts_for(
    name: str, positive: Sequence[Prompt | None], negative: Sequence[Prompt | None]
) -> Sequence[Prompt | None]:
    """Return the region prompts for one of a guider's lists; None for the list's own prompt.

    The positive and the styles use the regions' positive prompts. A list that is neither one of
    these nor the negative, such as the empty prompt of Perp-Neg, keeps its own prompt everywhere.

    Args:
        name: Name of the list in the guider.
        positive: Positive prompt of each region.
        negative: Negative prompt of each region.
    """
    if name == POSITIVE or name.startswith(STYLES):
        return positive
    return negative if name == NEGATIVE else [None] * len(positive)


def pooled_of(conditioning: Conditioning | None) -> Tensor | None:
    """Return a prompt's pooled vector, ``(1, channel)``; None if there is none."""
    return None if conditioning is None else conditioning[0][1].get("pooled_output")


class CONDEntryIndex(CONDRegular):
    """The index of a conditioning entry in a condition's ``model_conds``, ``(row, 1)``.

    ComfyUI uses ``can_concat`` to decide whether rows of two entries may share a call. Texts of one
    call are repeated to a common length, so texts whose common length would be too long run in
    separate calls, like ComfyUI's ordinary contexts.

    Args:
        cond: The index.
        lengths: Number of tokens of each region's text; empty if texts are not repeated.
    """

    def __init__(self, cond: Tensor, lengths: tuple[int, ...] = ()):
        super().__init__(cond)
        self._lengths = lengths

    def _copy_with(self, cond: Tensor) -> CONDEntryIndex:
        return CONDEntryIndex(cond, self._lengths)

    def can_concat(self, other: CONDEntryIndex) -> bool:
        """Return whether no text is repeated more than ``_MAX_REPEATS`` times."""
        return super().can_concat(other) and all(
            math.lcm(one, two) <= _MAX_REPEATS * min(one, two)
            for one, two in zip(self._lengths, other._lengths, strict=True)
        )


def repeated(texts: Sequence[Tensor]) -> Tensor:
    """Return texts ``(token, dim)`` as a batch; short ones repeat, which changes no attention."""
    tokens = math.lcm(*(len(text) for text in texts))
    return torch.stack([text.repeat(tokens // len(text), 1) for text in texts])


def _text(conditioning: Conditioning | None, preprocess: Preprocessing) -> EncodedText | None:
    if conditioning is None:
        return None
    context, options = conditioning[0]
    prompt = options.get(PROMPT)
    layers = None if prompt is None else prompt.layers
    return EncodedText(preprocess(context) if layers is None else layers)


def _area(entry: dict[str, Any], dimensions: int) -> Area | None:
    if "area" not in entry:
        return None
    area = add_area_dims(list(entry["area"]), dimensions)
    height, width = area[dimensions - 2], area[dimensions - 1]
    top, left = area[2 * dimensions - 2], area[2 * dimensions - 1]
    return height, width, top, left
