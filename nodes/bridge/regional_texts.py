"""Which texts the rows of a model call hear, region by region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.samplers import add_area_dims
from torch import Tensor

from .concept_layers import LAYERS
from .concept_prompt import PROMPT
from .conditioning import Conditioning
from .region_prompts import RegionPrompt
from .regional_places import Area
from .style_rows import Entry
from .style_run import KEY as STYLES
from .style_run import OWN_PROMPT, POSITIVE

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
        said = self.positive if is_positive(name) else self.negative
        own = None
        if any(alone and text is None for alone, text in zip(self.alone, said, strict=True)):
            conds = entry["model_conds"]
            own = Text((conds[LAYERS] if LAYERS in conds else conds["c_crossattn"]).cond)
        texts = tuple(
            own if text is None and alone else text
            for text, alone in zip(said, self.alone, strict=True)
        )
        return Role(texts, _area(entry, dimensions), not entry.get(OWN_PROMPT, False))


def is_positive(name: str) -> bool:
    """Return whether a guider's list holds prompts to follow: the positive's, or a style's."""
    return name == POSITIVE or name.startswith(STYLES)


def pooled_of(conditioning: Conditioning | None) -> Tensor | None:
    """Return a prompt's pooled vector, ``(1, channel)``, None if it has none."""
    return None if conditioning is None else conditioning[0][1].get("pooled_output")


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
