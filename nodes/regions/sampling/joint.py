"""Regions in transformers with joint attention: all texts in one stream, kept apart by masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ....lora_ops import stream_bias
from .call import OVERRIDE, Attention, Call, Rows, overridden
from .masks import MaskedAttention, Masks


class JointListening:
    """How the texts of regions reach joint attention, as in SD3 and Flux.

    All texts stand in one stream. A mask keeps them from each other and each image token to the
    texts of its regions.

    Args:
        patch: Latent pixels of an image token along each side.
        positions: Coordinates of a text token that count its place in the prompt, as Flux.2 has.
    """

    repeats = False

    def __init__(self, patch: int, positions: Sequence[int] = ()):
        self._patch = patch
        self._positions = list(positions)
        self._biases: dict[tuple, Tensor] = {}
        self._attention = MaskedAttention()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold nothing: the options carry all of it."""
        yield

    def prepare(
        self, call: Call, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the context with all texts, and options whose attention is masked."""
        streams = [
            [_stream(call, row, region, context) for region in call.regions]
            for row in range(len(call.roles))
        ]
        slots = tuple(max(len(row[region]) for row in streams) for region in call.regions)
        lengths = (context.shape[1], *slots)
        if not any(slots):
            return context, dict(options), lengths
        padded = [
            torch.cat([_padded(text, size) for text, size in zip(row, slots, strict=True)])
            for row in streams
        ]
        image = self._image_tokens(call)
        biases = [
            self._bias(rows, tuple(len(text) for text in streams[number]), lengths)
            for rows, number in sorted(
                ((rows, number) for rows in call.groups for number in rows.numbers),
                key=lambda pair: pair[1],
            )
        ]
        total = sum(lengths) + image
        masks = Masks(biases)
        before = options.get(OVERRIDE)

        def ours(
            function: Attention,
            attention: Attention,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            tokens = q.shape[-2]
            if tokens == image:  # the picture's attention to itself
                return attention(q, k, v, *args, **kwargs)
            if tokens != total or kwargs.get("mask") is not None:
                raise RuntimeError(
                    "regions must be alone in telling which tokens hear each other, got "
                    f"{tokens} tokens where {total} were expected or another mask; remove "
                    "reference pictures, Redux masks and patches that add tokens"
                )
            return self._attention(function, before, masks, (q, k, v, *args), kwargs)

        whole = torch.cat([context, torch.stack(padded)], dim=1)
        return whole, self._restarted(overridden(options, ours), lengths), lengths

    def _image_tokens(self, call: Call) -> int:
        shapes = {rows.places.shape for rows in call.groups}
        if len(shapes) != 1:
            raise RuntimeError(f"rows of one call must be of one size, got {sorted(shapes)}")
        return self._tokens(*shapes)

    def _tokens(self, shape: tuple[int, int]) -> int:
        return -(-shape[0] // self._patch) * -(-shape[1] // self._patch)

    def _bias(self, rows: Rows, own: tuple[int, ...], lengths: tuple[int, ...]) -> Tensor:
        """Return the mask of one row, ``(text + image, text + image)``.

        Args:
            rows: The row's group.
            own: Tokens of its text in each region, 0 where it hears its own prompt.
            lengths: Tokens of the slots, the global prompt's first; longer than ``own`` where
                another row's text is.
        """
        key = (rows.places, rows.regional, own, lengths)
        if key not in self._biases:
            silent = frozenset(i for i, tokens in enumerate(own) if not tokens or not rows.regional)
            grid = tuple(-(-side // self._patch) for side in rows.places.shape)
            mixed = rows.places.mixed(grid, 1, silent)
            self._biases[key] = stream_bias(mixed, lengths, (lengths[0], *own))
        return self._biases[key]

    def _restarted(self, options: dict[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
        """Return options under which every text counts its places from 0, as alone."""
        if not self._positions:
            return options
        places = torch.cat([torch.arange(length) for length in lengths])

        def restart(args: dict[str, Any]) -> dict[str, Any]:
            ids = args["txt_ids"].clone()
            ids[..., self._positions] = places.to(ids)[:, None]
            return {**args, "txt_ids": ids}

        patches = options.get("patches", {})
        inputs = [restart, *patches.get("post_input", [])]
        return {**options, "patches": {**patches, "post_input": inputs}}


def _stream(call: Call, row: int, region: int, like: Tensor) -> Tensor:
    """Return what a row hears in a region, ``(token, dim)``, no tokens where it is its own."""
    text = call.text(row, region)
    return like[row, :0] if text is None else text.at(0, row % call.batch, like)


def _padded(text: Tensor, size: int) -> Tensor:
    return torch.cat([text, text.new_zeros(size - len(text), text.shape[1])])
