"""Per-token mixing of region prompts, in attention and in pooled vectors.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (q, k, v), each (batch, token, channel)

ROUNDING = 1e-6  # a token whose masks sum to 1 within this gets nothing from the global prompt


@dataclass(frozen=True)
class TokenOrder:
    """A permutation that groups tokens by the one prompt that each of them attends to.

    Args:
        order: ``(token,)``, indices that sort the tokens by prompt; None if they are sorted.
        inverse: ``(token,)``, the inverse permutation; None if the tokens are sorted.
        counts: Number of tokens of each prompt, the global prompt first.
    """

    order: Tensor | None
    inverse: Tensor | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Mixing:
    """The weight of every prompt at every token.

    Args:
        coefficients: ``(1 + region, token)``, the global prompt first; each column sums to 1.
        places: For each prompt, the tokens with a coefficient above 0; ``None`` means all tokens.
        token_order: The tokens grouped by prompt, if every token has a single prompt; else None.
    """

    coefficients: Tensor
    places: tuple[Tensor | None, ...]
    token_order: TokenOrder | None = None

    def to(self, like: Tensor) -> Mixing:
        """Return the mixing in the dtype and on the device of a tensor."""
        places = tuple(None if place is None else place.to(like.device) for place in self.places)
        grouped = self.token_order
        if grouped is not None and grouped.order is not None and grouped.inverse is not None:
            order, inverse = grouped.order.to(like.device), grouped.inverse.to(like.device)
            grouped = TokenOrder(order, inverse, grouped.counts)
        return Mixing(self.coefficients.to(like), places, grouped)


def mix_regions(
    masks: Tensor,
    *,
    weights: Sequence[float] | None = None,
    blends: Sequence[float] | None = None,
) -> Mixing:
    """Return the weighted mean of the regions at every token; elsewhere the global prompt.

    Where hard masks of equal weight overlap, it is the arithmetic mean of the paper. What soft
    masks don't cover is left to the global prompt.

    Args:
        masks: ``(region, token)`` in 0..1.
        weights: Weight of each region relative to the others, 1 by default; 0 leaves a region out.
        blends: Fraction of each region that is given to the global prompt, 0 by default.
    """
    count = masks.shape[0]
    weight = _column(weights, 1.0, count, "weight")
    blend = _column(blends, 0.0, count, "blend")
    masks = masks.detach().double().cpu() * (weight > 0)
    covered = masks.sum(0).clamp(max=1.0)  # (token,)
    covered = covered.where(covered < 1.0 - ROUNDING, 1.0)
    pull = masks * weight
    total = pull.sum(0)
    pull = torch.where(total > 0, pull / total.where(total > 0, 1.0), 0.0) * covered
    outside = 1.0 - covered + (pull * blend).sum(0)
    coefficients = torch.cat([outside[None], pull * (1.0 - blend)])
    places = tuple(None if bool(row.all()) else row.nonzero().flatten() for row in coefficients)
    return Mixing(coefficients, places, _token_order(coefficients))


def _token_order(coefficients: Tensor) -> TokenOrder | None:
    if not bool(((coefficients == 0) | (coefficients == 1)).all()):
        return None
    prompt = coefficients.argmax(0)  # (token,)
    order = prompt.argsort(stable=True)
    counts = tuple(torch.bincount(prompt, minlength=len(coefficients)).tolist())
    if bool((order.diff() == 1).all()):
        return TokenOrder(None, None, counts)
    return TokenOrder(order, order.argsort(), counts)


def _column(values: Sequence[float] | None, default: float, count: int, what: str) -> Tensor:
    if values is not None and len(values) != count:
        raise ValueError(f"there must be one {what} for each region, got {len(values)} for {count}")
    filled = [default] * count if values is None else list(values)
    return torch.tensor(filled, dtype=torch.float64)[:, None]


def area_weights(mixed: Mixing) -> Tensor:
    """Return every prompt's fraction of the picture, ``(1 + region,)``, the global prompt first."""
    return mixed.coefficients.mean(1)


def pooled_mean(base: Tensor, regions: Sequence[Tensor | None], mixed: Mixing) -> Tensor:
    """Return the mean of pooled vectors, each weighted by its prompt's area.

    Args:
        base: ``(batch, channel)``, the global prompt's vector.
        regions: One vector for each region; ``None`` stands for the global prompt's vector.
        mixed: Mixing on any grid of the picture.
    """
    areas = area_weights(mixed).tolist()
    vectors = [base, *(base if vector is None else vector for vector in regions)]
    return sum(
        (vector * area for vector, area in zip(vectors, areas, strict=True)),
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
    """Return cross-attention in which each token attends to the prompts of its regions.

    Attention to a prompt is computed only for the tokens that use it, so the cost is one attention
    over the picture, not one for each region. Without regions the result is bit-equal to plain
    attention.

    Args:
        q: ``(batch, token, channel)``.
        k: ``(batch, text, channel)``, the global prompt's keys.
        v: ``(batch, text, channel)``, the global prompt's values.
        regions: Keys and values of each region, ``(batch, text_i, channel)``; ``None`` stands for
            the global prompt.
        mixed: Mixing of the layer's ``q.shape[1]`` tokens.
        heads: Number of attention heads.
        attend: Plain attention of ``(q, k, v)`` in the shapes above; by default PyTorch's scaled
            dot-product attention.

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
    if mixed.token_order is not None:
        return _single_prompt_attention(q, texts, mixed.token_order, attend)
    out = torch.zeros_like(q)
    for coefficient, place, text in zip(mixed.coefficients, mixed.places, texts, strict=True):
        if place is None:
            out = out + coefficient[:, None] * attend(q, *text)
        elif len(place):
            update = coefficient[place, None] * attend(q[:, place], *text)
            out = out.index_add(1, place, update)
    return out


def _single_prompt_attention(
    q: Tensor, texts: Sequence[tuple[Tensor, Tensor]], grouped: TokenOrder, attend: Attend
) -> Tensor:
    """Return attention of tokens that have one prompt each, with two gathers for all prompts."""
    sorted_q = q if grouped.order is None else q[:, grouped.order]
    parts = [
        attend(part, *text)
        for part, text in zip(sorted_q.split(grouped.counts, dim=1), texts, strict=True)
        if part.shape[1]
    ]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out if grouped.inverse is None else out[:, grouped.inverse]


def mix_outputs(base: Tensor, regions: Sequence[Tensor | None], mixed: Mixing) -> Tensor:
    """Return the per-token mean of a layer's outputs for each prompt.

    It serves where another patch replaces the attention and only whole outputs are available.

    Args:
        base: ``(batch, token, channel)``, the output for the global prompt.
        regions: Outputs for the regions' prompts; ``None`` stands for the global prompt's output.
        mixed: Mixing of the layer's tokens.
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

    All prompts are concatenated into one text stream. The bias between an image token and a prompt
    is the logarithm of the prompt's coefficient, so hard regions give 0 or minus infinity. A prompt
    attends to itself and to the image tokens that use it, never to another prompt. Image tokens
    attend to each other.

    Args:
        mixed: Mixing of the image tokens, in the stream's order.
        lengths: Number of tokens of each prompt, the global prompt first.
        filled: Number of tokens of each prompt without padding; no token attends to the padding.
            All of them by default.

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
    bias.fill_diagonal_(0.0)  # a row of minus infinity alone would make softmax return NaN
    begin = 0
    for coefficient, length, own in zip(
        mixed.coefficients, lengths, filled or lengths, strict=True
    ):
        end = begin + own
        logs = coefficient.log().float()  # (token,)
        bias[begin:end, begin:end] = 0.0
        bias[begin:end, text:] = logs
        bias[text:, begin:end] = logs[:, None]
        begin += length
    return bias


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
