"""Regions in transformers: texts behind each other in one stream, kept apart by splits or masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...lora_ops import stream_bias
from .regional_call import (
    Attention,
    Call,
    Rows,
    mixed_attention,
    overridden,
    split_texts,
    widened,
)

_MASKLESS = ("sage", "flash")
"""In the names of ComfyUI's attention functions that don't take every mask."""


class CrossListening:
    """How the texts of regions reach cross-attention whose text is embedded once, as in Wan.

    Args:
        layers: The cross-attention modules.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self._layers = layers
        self._call: tuple[Call, tuple[int, ...]] | None = None
        self._announced = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the hooks that announce a cross-attention layer."""
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(self._announce).remove)
            yield

    def prepare(
        self, call: Call, context: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
        """Return the context with all texts, and options whose cross-attention parts them."""
        whole, lengths = widened(call, context)

        def ours(
            function: Attention,
            attention: Attention,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            heads: int,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            announced, self._announced = self._announced, False
            if not announced:
                return attention(q, k, v, heads, *args, **kwargs)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return attention(q, k, v, heads, *args, **kwargs)

            base, regions = split_texts(k, v, lengths)
            return mixed_attention(call, q, base, regions, heads, attend)

        self._announced = False
        return whole, overridden(options, ours), lengths

    def _announce(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._announced = True


class JointListening:
    """How the texts of regions reach joint attention, as in SD3 and Flux.

    All texts stand in one stream. A mask keeps them from each other and each image token to the
    texts of its regions.

    Args:
        patch: Latent pixels of an image token along each side.
        positions: Coordinates of a text token that count its place in the prompt, as Flux.2 has.
    """

    def __init__(self, patch: int, positions: Sequence[int] = ()):
        self._patch = patch
        self._positions = list(positions)
        self._biases: dict[tuple, Tensor] = {}
        self._placed: dict[tuple, Tensor] = {}
        self._said = False

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
            self._bias(rows, tuple(len(text) for text in streams[number]), lengths, image)
            for rows, number in sorted(
                ((rows, number) for rows in call.groups for number in rows.numbers),
                key=lambda pair: pair[1],
            )
        ]
        total = sum(lengths) + image
        self._require_room(total, len({id(bias) for bias in biases}), len(biases), context)

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
            masked = {**kwargs, "mask": self._beside(biases, q)}
            if self._takes_masks(function):
                return attention(q, k, v, *args, **masked)
            return attention_pytorch(q, k, v, *args, **masked)

        whole = torch.cat([context, torch.stack(padded)], dim=1)
        return whole, self._restarted(overridden(options, ours), lengths), lengths

    def _image_tokens(self, call: Call) -> int:
        shapes = {rows.places.shape for rows in call.groups}
        if len(shapes) != 1:
            raise RuntimeError(f"rows of one call must be of one size, got {sorted(shapes)}")
        return self._tokens(*shapes)

    def _tokens(self, shape: tuple[int, int]) -> int:
        return -(-shape[0] // self._patch) * -(-shape[1] // self._patch)

    def _bias(
        self, rows: Rows, own: tuple[int, ...], lengths: tuple[int, ...], image: int
    ) -> Tensor:
        """Return the mask of one row, ``(text + image, text + image)``.

        Args:
            rows: The row's group.
            own: Tokens of its text in each region, 0 where it hears its own prompt.
            lengths: Tokens of the slots, the global prompt's first; longer than ``own`` where
                another row's text is.
            image: Image tokens.
        """
        key = (rows.places, rows.regional, own, lengths)
        if key not in self._biases:
            silent = frozenset(i for i, tokens in enumerate(own) if not tokens or not rows.regional)
            grid = tuple(-(-side // self._patch) for side in rows.places.shape)
            bias = stream_bias(rows.places.mixed(grid, 1, silent), lengths)
            begin = lengths[0]
            for tokens, size in zip(own, lengths[1:], strict=True):
                empty = slice(begin + tokens, begin + size)
                bias[empty], bias[:, empty] = float("-inf"), float("-inf")
                bias[empty, empty].fill_diagonal_(0.0)  # a row of softmax must hear something
                begin += size
            self._biases[key] = bias
        return self._biases[key]

    def _beside(self, biases: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return the rows' masks beside a tensor, a single one where all are alike; kept."""
        key = (tuple(id(bias) for bias in biases), like.device, like.dtype)
        if key not in self._placed:
            alike = len(set(key[0])) == 1
            self._placed[key] = (biases[0] if alike else torch.stack(list(biases))).to(like)
        return self._placed[key]

    def _require_room(self, total: int, kinds: int, rows: int, like: Tensor) -> None:
        size = total * total * like.element_size() * (1 if kinds == 1 else rows)
        free = comfy.model_management.get_free_memory(like.device)
        if size > free:
            raise RuntimeError(
                "the texts of all regions must fit beside the picture, got "
                f"{total} tokens whose mask takes {size / 2**30:.1f} GiB of {free / 2**30:.1f} GiB "
                "that are free; use shorter prompts, fewer regions or a smaller picture"
            )

    def _takes_masks(self, function: Attention) -> bool:
        if not any(kind in function.__name__ for kind in _MASKLESS):
            return True
        if not self._said:
            self._said = True
            logging.warning(
                "Pastiche: %s takes no masks; regions use PyTorch's attention in its place.",
                function.__name__,
            )
        return False

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
