"""Attention under the masks of regions: whichever function takes them, in the memory there is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .call import Attention

_MASKLESS = re.compile(r"(^|[^a-z])(sage|flash)|Sage|Flash")
"""In the names of attention functions that don't take every mask."""


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of a call's rows, fp32 on the CPU; rows that are alike share one.

    Args:
        rows: Of each row, ``(token, token)``.
    """

    rows: Sequence[Tensor]

    @property
    def kinds(self) -> tuple[int, ...]:
        """Return for each row which mask it has, by identity."""
        return tuple(id(mask) for mask in self.rows)

    @property
    def alike(self) -> bool:
        """Whether all rows have the same mask."""
        return len(set(self.kinds)) == 1


class MaskedAttention:
    """Attention with an additive mask for each row, for one sampling run.

    A function that takes no masks is replaced by PyTorch's, and so is another node's attention that
    does not hand the mask on to the function it was given; both are said once. Where there is no
    room for the masks of all rows, rows of each kind run apart.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._key: tuple[Any, ...] = ()
        self._placed: Tensor | None = None

    def __call__(
        self,
        function: Attention,
        before: Callable[..., Tensor] | None,
        masks: Masks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Return the attention of all rows.

        Args:
            function: ComfyUI's own.
            before: What another node has put in its place.
            masks: Of the rows.
            args: Of the attention, ``(q, k, v, heads, ...)``, rows first.
            kwargs: Likewise, without a mask.

        Raises:
            RuntimeError: There is no room for a single mask.
        """
        placed = self._beside(masks, args[0])
        if placed is not None:
            return self._masked(function, before, placed, args, kwargs)
        out: Tensor | None = None
        for kind in dict.fromkeys(masks.kinds):
            rows = [number for number, own in enumerate(masks.kinds) if own == kind]
            mask = masks.rows[rows[0]].to(args[0])
            part = self._masked(
                function, before, mask, (*(x[rows] for x in args[:3]), *args[3:]), kwargs
            )
            out = part.new_empty(len(masks.rows), *part.shape[1:]) if out is None else out
            out[rows] = part
        return out

    def _beside(self, masks: Masks, like: Tensor) -> Tensor | None:
        """Return the masks beside a tensor, kept until others are asked for; None without room."""
        key = (masks.kinds, like.device, like.dtype)
        if key == self._key:
            return self._placed
        self._key, self._placed = (), None
        size = masks.rows[0].numel() * like.element_size()
        free = _free_memory(like.device)
        if size > free:
            raise RuntimeError(
                "the texts of all regions must fit beside the picture, got "
                f"{len(masks.rows[0])} tokens whose mask takes {size / 2**30:.1f} GiB of "
                f"{free / 2**30:.1f} GiB that are free; use shorter prompts, fewer regions or a "
                "smaller picture"
            )
        if masks.alike:
            self._placed = masks.rows[0].to(like)
        elif size * len(masks.rows) <= free:
            self._placed = torch.stack([mask.to(like) for mask in masks.rows])
        self._key = key
        return self._placed

    def _masked(
        self,
        function: Attention,
        before: Callable[..., Tensor] | None,
        mask: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        named = {**kwargs, "mask": mask}
        ours = attention_pytorch if self._maskless(function) else function
        if before is None:
            return ours(*args, **named)
        if self._maskless(before):
            return attention_pytorch(*args, **named)
        handed: list[bool] = []

        @functools.wraps(ours)
        def through(*inner: Any, **more: Any) -> Tensor:
            handed.append(any(value is mask for value in (*inner, *more.values())))
            return ours(*inner, **more)

        out = before(through, *args, **named)
        if handed and all(handed):
            return out
        self._say(before)
        return attention_pytorch(*args, **named)

    def _maskless(self, function: Callable[..., Tensor]) -> bool:
        name = _name(function)
        if name not in self._said and not _MASKLESS.search(name):
            return False
        self._say(function)
        return True

    def _say(self, function: Callable[..., Tensor]) -> None:
        name = _name(function)
        if name not in self._said:
            self._said.add(name)
            logging.warning(
                "Pastiche: %s takes no masks; regions use PyTorch's attention in its place.", name
            )


def _name(function: Callable[..., Tensor]) -> str:
    """Return what a function or callable object is called, with its module."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _free_memory(device: torch.device) -> float:
    return comfy.model_management.get_free_memory(device)
