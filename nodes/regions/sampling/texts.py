"""Which texts the rows of a model call hear, region by region."""

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
from ..layout.places import Area
from .prompts import RegionPrompt

NEGATIVE = "negative"  # what ComfyUI's guiders call the prompt they lead away from

_REPEATS = 4
"""How often a text is repeated at most beside one of another length, as in ComfyUI."""

Spoken = TypeVar("Spoken")
Reading = Callable[[Tensor], Tensor]
"""What a model makes of a prompt's context ``(1, token, dim)``, such as filling it up."""


@dataclass(frozen=True, eq=False)
class Text:
    """One prompt's context as layers read it; told apart by identity.

    Args:
        context: ``(batch, token, dim)``, or ``(batch, layer, token, dim)``.
    """

    context: Tensor

    def at(self, layer: int, row: int, like: Tensor) -> Tensor:
        """Return the context ``(token, dim)`` of one row at one layer, beside a tensor."""
        own = self.context[row % self.context.shape[0]]
        return (own[layer] if own.ndim == 3 else own).to(like)


@dataclass(frozen=True, eq=False)
class Role:
    """What one conditioning entry's rows hear.

    Args:
        texts: For each region its text, None for the row's own.
        area: The part of the latent that the entry predicts; None for all of it.
        regional: Whether regions act in these rows at all.
    """

    texts: tuple[Text | None, ...]
    area: Area | None
    regional: bool = True

    def number(self, number: int, own: int, repeats: bool) -> RoleNumber:
        """Return the number that the entry's rows are known by.

        Args:
            number: Of the role.
            own: Tokens of the entry's own prompt.
            repeats: Whether texts of a call are repeated to a common length.
        """
        lengths = tuple(own if text is None else text.context.shape[-2] for text in self.texts)
        return RoleNumber(torch.tensor([[number]]), lengths if repeats else ())


@dataclass(frozen=True, eq=False)
class SaidTexts:
    """Each region's texts, made once for a run.

    Args:
        positive: For each region, None for the global prompt.
        negative: Likewise.
        alone: Whether the region needs a text of its own, because a LoRA changes its keys.
    """

    positive: tuple[Text | None, ...]
    negative: tuple[Text | None, ...]
    alone: tuple[bool, ...]

    @classmethod
    def of(cls, prompts: Sequence[RegionPrompt], read: Reading) -> SaidTexts:
        """Return the texts of region prompts.

        Args:
            prompts: One for each region.
            read: What the model makes of a context before its network sees it.
        """
        return cls(
            tuple(_text(prompt.positive, read) for prompt in prompts),
            tuple(_text(prompt.negative, read) for prompt in prompts),
            tuple(bool(prompt.loras) for prompt in prompts),
        )

    def role(self, name: str, entry: Entry, dimensions: int) -> Role:
        """Return the role of an entry that a sampler has encoded.

        Args:
            name: Of the entry's list in the guider.
            entry: With its area in latent pixels.
            dimensions: Of the latent, without batch and channel.
        """
        said = spoken(name, self.positive, self.negative)
        own = None
        if any(alone and text is None for alone, text in zip(self.alone, said, strict=True)):
            conds = entry["model_conds"]
            own = Text((conds[LAYERS] if LAYERS in conds else conds["c_crossattn"]).cond)
        texts = tuple(
            own if text is None and alone else text
            for text, alone in zip(said, self.alone, strict=True)
        )
        return Role(texts, _area(entry, dimensions), not entry.get(OWN_PROMPT, False))


def spoken(
    name: str, positive: Sequence[Spoken | None], negative: Sequence[Spoken | None]
) -> Sequence[Spoken | None]:
    """Return what a guider's list hears in each region, None for its own prompt.

    Prompts to follow are the positive's and the styles'. Lists that are neither these nor the
    negative, such as the empty prompt of Perp-Neg, keep their own words everywhere.

    Args:
        name: Of the list in the guider.
        positive: Of each region.
        negative: Likewise.
    """
    if name == POSITIVE or name.startswith(STYLES):
        return positive
    return negative if name == NEGATIVE else [None] * len(positive)


def pooled_of(conditioning: Conditioning | None) -> Tensor | None:
    """Return a prompt's pooled vector, ``(1, channel)``, None if it has none."""
    return None if conditioning is None else conditioning[0][1].get("pooled_output")


class RoleNumber(CONDRegular):
    """A role's number among a condition's ``model_conds``: ``(row, 1)``.

    ComfyUI asks it whether rows of another role may share a call. Texts that share one are repeated
    to a common length, so those whose lengths would multiply run apart, as ComfyUI's own do.

    Args:
        cond: The number.
        lengths: Tokens of what the role hears in each region; empty where texts are not repeated.
    """

    def __init__(self, cond: Tensor, lengths: tuple[int, ...] = ()):
        super().__init__(cond)
        self._lengths = lengths

    def _copy_with(self, cond: Tensor) -> RoleNumber:
        return RoleNumber(cond, self._lengths)

    def can_concat(self, other: RoleNumber) -> bool:
        """Return whether no text is repeated more than ``_REPEATS`` times."""
        return super().can_concat(other) and all(
            math.lcm(one, two) <= _REPEATS * min(one, two)
            for one, two in zip(self._lengths, other._lengths, strict=True)
        )


def repeated(texts: Sequence[Tensor]) -> Tensor:
    """Return texts ``(token, dim)`` as one batch, short ones repeated: no attention is changed."""
    tokens = math.lcm(*(len(text) for text in texts))
    return torch.stack([text.repeat(tokens // len(text), 1) for text in texts])


def _text(conditioning: Conditioning | None, read: Reading) -> Text | None:
    if conditioning is None:
        return None
    context, options = conditioning[0]
    prompt = options.get(PROMPT)
    layers = None if prompt is None else prompt.layers
    return Text(read(context) if layers is None else layers)


def _area(entry: dict[str, Any], dimensions: int) -> Area | None:
    if "area" not in entry:
        return None
    area = add_area_dims(list(entry["area"]), dimensions)
    height, width = area[dimensions - 2], area[dimensions - 1]
    top, left = area[2 * dimensions - 2], area[2 * dimensions - 1]
    return height, width, top, left
