"""Who is heard where: regions mixed token by token, in attention and in pooled vectors.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of ``(q, k, v)``, each ``(batch, token, channel)``."""

ROUNDING = 1e-6
"""Soft masks that add up to 1 but for this leave nothing to the global prompt."""


@dataclass(frozen=True)
class Sorted:
    """Tokens in the order of the one prompt that each of them hears.

    Args:
        order: ``(token,)``, indices of the tokens as they are sorted; None if they are already.
        back: ``(token,)``, where each token stands among the sorted ones; None likewise.
        counts: How many tokens hear each prompt, the global one first.
    """

    order: Tensor | None
    back: Tensor | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Mixing:
    """Who is heard at which token.

    Args:
        coefficients: ``(1 + region, token)``, the global prompt first; a token's sum is 1.
        places: For each row the tokens where it is heard; ``None`` means all of them.
        alone: The tokens sorted by prompt, where each of them hears a single one; else ``None``.
    """

    coefficients: Tensor
    places: tuple[Tensor | None, ...]
    alone: Sorted | None = None

    def to(self, like: Tensor) -> Mixing:
        """Return it in the dtype and on the device of a tensor, once for a run."""
        places = tuple(None if place is None else place.to(like.device) for place in self.places)
        alone = self.alone
        if alone is not None and alone.order is not None and alone.back is not None:
            there = alone.order.to(like.device), alone.back.to(like.device)
            alone = Sorted(*there, alone.counts)
        return Mixing(self.coefficients.to(like), places, alone)


def mix_regions(
    masks: Tensor,
    *,
    weights: Sequence[float] | None = None,
    blends: Sequence[float] | None = None,
) -> Mixing:
    """Return the mean of the regions at every token, the global prompt where there is none.

    Where hard masks of equal weight overlap it is the paper's arithmetic mean. Soft masks leave
    what they don't cover to the global prompt.

    Args:
        masks: ``(region, token)`` in 0..1.
        weights: Of the regions against each other, 1 by default; 0 leaves a region out.
        blends: Each region's share that is given to the global prompt, 0 by default.
    """
    count = masks.shape[0]
    weight = _column(weights, 1.0, count, "weight")
    blend = _column(blends, 0.0, count, "blend")
    masks = masks.detach().double().cpu() * (weight > 0)
    covered = masks.sum(0).clamp(max=1.0)  # (token,)
    covered = covered.where(covered < 1.0 - ROUNDING, 1.0)
    pull = masks * weight
    whole = pull.sum(0)
    pull = torch.where(whole > 0, pull / whole.where(whole > 0, 1.0), 0.0) * covered
    outside = 1.0 - covered + (pull * blend).sum(0)
    coefficients = torch.cat([outside[None], pull * (1.0 - blend)])
    places = tuple(None if bool(row.all()) else row.nonzero().flatten() for row in coefficients)
    return Mixing(coefficients, places, _sorted(coefficients))


def _sorted(coefficients: Tensor) -> Sorted | None:
    if not bool(((coefficients == 0) | (coefficients == 1)).all()):
        return None
    heard = coefficients.argmax(0)  # (token,)
    order = heard.argsort(stable=True)
    counts = tuple(torch.bincount(heard, minlength=len(coefficients)).tolist())
    if bool((order.diff() == 1).all()):
        return Sorted(None, None, counts)
    return Sorted(order, order.argsort(), counts)


def _column(values: Sequence[float] | None, default: float, count: int, what: str) -> Tensor:
    if values is not None and len(values) != count:
        raise ValueError(f"there must be one {what} for each region, got {len(values)} for {count}")
    filled = [default] * count if values is None else list(values)
    return torch.tensor(filled, dtype=torch.float64)[:, None]


def area_weights(mixed: Mixing) -> Tensor:
    """Return everyone's share of the picture, ``(1 + region,)``, the global prompt first."""
    return mixed.coefficients.mean(1)


def pooled_mean(base: Tensor, regions: Sequence[Tensor | None], mixed: Mixing) -> Tensor:
    """Return the mean of pooled vectors, each weighted by its share of the picture.

    Args:
        base: ``(batch, channel)``, the global prompt's.
        regions: One for each region; ``None`` is served by the global one.
        mixed: Of any grid of the picture.
    """
    shares = area_weights(mixed).tolist()
    vectors = [base, *(base if vector is None else vector for vector in regions)]
    return sum(
        (vector * share for vector, share in zip(vectors, shares, strict=True)),
        torch.zeros_like(base),
    )


def regional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    regions: Sequence[tuple[Tensor, Tensor] | None],
    mixed: Mixing,
    *,
    heads: int,
    attend: Attend | None = None,
) -> Tensor:
    """Return cross-attention in which each token hears the prompts of its regions.

    Every prompt is attended from the tokens that hear it alone, so the price is one attention over
    the picture, not one for each region. Without regions the result is plain attention, bit-equal.

    Args:
        q: ``(batch, token, channel)``.
        k: ``(batch, text, channel)``, the global prompt's keys.
        v: Its values, same shape.
        regions: Keys and values of each region, ``(batch, text_i, channel)``; ``None`` is served by
            the global prompt.
        mixed: Of the layer's tokens, ``q.shape[1]`` of them.
        heads: Of the layer.
        attend: Plain attention of ``(q, k, v)``, channels as above; PyTorch's own by default.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
    """
    if len(regions) != len(mixed.places) - 1:
        raise ValueError(
            "there must be a prompt or None for each region, "
            f"got {len(regions)} for {len(mixed.places) - 1}"
        )
    if mixed.coefficients.shape[1] != q.shape[1]:
        raise ValueError(
            f"there must be masks for {q.shape[1]} tokens, got {mixed.coefficients.shape[1]}"
        )
    attend = attend or (lambda q, k, v: _attention(q, k, v, heads))
    if not regions:
        return attend(q, k, v)
    mixed = mixed.to(q)
    texts = [(k, v), *((k, v) if text is None else text for text in regions)]
    if mixed.alone is not None:
        return _heard_alone(q, texts, mixed.alone, attend)
    out = torch.zeros_like(q)
    for coefficient, place, text in zip(mixed.coefficients, mixed.places, texts, strict=True):
        if place is None:
            out = out + coefficient[:, None] * attend(q, *text)
        elif len(place):
            heard = coefficient[place, None] * attend(q[:, place], *text)
            out = out.index_add(1, place, heard)
    return out


def _heard_alone(
    q: Tensor, texts: Sequence[tuple[Tensor, Tensor]], alone: Sorted, attend: Attend
) -> Tensor:
    """Return attention of tokens that hear one prompt each: two gathers for all prompts."""
    sorted_q = q if alone.order is None else q[:, alone.order]
    parts = [
        attend(part, *text)
        for part, text in zip(sorted_q.split(alone.counts, dim=1), texts, strict=True)
        if part.shape[1]
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out if alone.back is None else out[:, alone.back]


def mix_outputs(base: Tensor, regions: Sequence[Tensor | None], mixed: Mixing) -> Tensor:
    """Return the mean of a layer's outputs for each prompt, token by token.

    Where only whole outputs can be had, as of another's replacement of attention.

    Args:
        base: ``(batch, token, channel)``, for the global prompt.
        regions: For each region's prompt; ``None`` is served by the global one's.
        mixed: Of the layer's tokens.
    """
    mixed = mixed.to(base)
    outputs = [base, *(base if output is None else output for output in regions)]
    out = torch.zeros_like(base)
    for coefficient, place, output in zip(mixed.coefficients, mixed.places, outputs, strict=True):
        if place is None or len(place):
            out = out + coefficient[:, None] * output
    return out


def stream_bias(
    mixed: Mixing, lengths: Sequence[int], filled: Sequence[int] | None = None
) -> Tensor:
    """Return the additive mask of joint attention over ``[texts, image tokens]``, fp32 on the CPU.

    All prompts follow each other in one text stream. An image token hears a prompt by the
    logarithm of its coefficient, so hard regions give 0 or minus infinity; a prompt hears itself
    and the tokens that hear it, never another prompt; image tokens hear each other.

    Args:
        mixed: Of the image tokens, in the stream's order.
        lengths: Tokens of each prompt, the global one first.
        filled: How many of them are the prompt's own; what follows is heard by nobody. All of them
            by default.

    Returns:
        ``(text + token, text + token)``, rows for queries; add it to the scaled scores.
    """
    if len(lengths) != len(mixed.places):
        raise ValueError(
            f"there must be a length for each prompt, got {len(lengths)} for {len(mixed.places)}"
        )
    text = sum(lengths)
    size = text + mixed.coefficients.shape[1]
    bias = torch.full((size, size), float("-inf"))
    bias[text:, text:] = 0.0
    bias.fill_diagonal_(0.0)  # a row of softmax must hear something
    begin = 0
    for coefficient, length, own in zip(
        mixed.coefficients, lengths, filled or lengths, strict=True
    ):
        end = begin + own
        heard = coefficient.log().float()  # (token,)
        bias[begin:end, begin:end] = 0.0
        bias[begin:end, text:] = heard
        bias[text:, begin:end] = heard[:, None]
        begin += length
    return bias


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
