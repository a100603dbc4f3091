"""Compute attention with the masks of regions, within the free memory."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .call import Attention

# Names of attention functions that don't support every mask.
_MASKLESS = re.compile(r"(^|[^a-z])(sage|flash)|Sage|Flash")


@dataclass(frozen=True, eq=False)
class AttentionMasks:
    """The additive masks of a call's rows, fp32 on the CPU; equal rows share one tensor.

    Args:
        rows: Mask of each row, ``(token, token)``.
    """

    rows: Sequence[Tensor]

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the identity of each row's mask."""
        return tuple(id(mask) for mask in self.rows)

    @property
    def shared(self) -> bool:
        """Whether all rows have the same mask."""
        return len(set(self.ids)) == 1


class MaskedAttention:
    """Attention with an additive mask for each row, for one sampling run.

    PyTorch's attention replaces a function that does not support masks, and also another node's
    attention that does not pass the mask to the function it gets; each replacement is logged once.
    If the masks of all rows do not fit into memory, rows with different masks run separately.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._key: tuple[Any, ...] = ()
        self._placed: Tensor | None = None

    def __call__(
        self,
        function: Attention,
        before: Callable[..., Tensor] | None,
        masks: AttentionMasks,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Return the attention of all rows.

        Args:
            function: ComfyUI's attention.
            before: Replacement by another node; None if there is none.
            masks: Masks of the rows.
            args: Arguments of the attention, ``(q, k, v, heads, ...)``, rows first.
            kwargs: Keyword arguments of the attention, without a mask.

        Raises:
            RuntimeError: A single mask does not fit into memory.
        """
        placed = self._on_device(masks, args[0])
        if placed is not None:
            return self._masked(function, before, placed, args, kwargs)
        out: Tensor | None = None
        for shared in dict.fromkeys(masks.ids):
            rows = [number for number, own in enumerate(masks.ids) if own == shared]
            mask = masks.rows[rows[0]].to(args[0])
            part = self._masked(
                function, before, mask, (*(x[rows] for x in args[:3]), *args[3:]), kwargs
            )
            out = part.new_empty(len(masks.rows), *part.shape[1:]) if out is None else out
            out[rows] = part
        return cast(Tensor, out)  # a call has at least one row

    def _on_device(self, masks: AttentionMasks, like: Tensor) -> Tensor | None:
        """Return the masks on a tensor's device, cached until others are used; None if none fit."""
        key = (masks.ids, like.device, like.dtype)
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
        if masks.shared:
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
        ours = attention_pytorch if self._ignores_masks(function) else function
        if before is None:
            return ours(*args, **named)
        if self._ignores_masks(before):
            return attention_pytorch(*args, **named)
        passed_on: list[bool] = []

        @functools.wraps(ours)
        def through(*inner: Any, **more: Any) -> Tensor:
            passed_on.append(any(value is mask for value in (*inner, *more.values())))
            return ours(*inner, **more)

        out = before(through, *args, **named)
        if passed_on and all(passed_on):
            return out
        self._warn(before)
        return attention_pytorch(*args, **named)

    def _ignores_masks(self, function: Callable[..., Tensor]) -> bool:
        name = _name(function)
        if name not in self._warned and not _MASKLESS.search(name):
            return False
        self._warn(function)
        return True

    def _warn(self, function: Callable[..., Tensor]) -> None:
        name = _name(function)
        if name not in self._warned:
            self._warned.add(name)
            logging.warning(
                "Pastiche: %s takes no masks; regions use PyTorch's attention in its place.", name
            )


def _name(function: Callable[..., Tensor]) -> str:
    """Return the name of a function or callable object, with its module."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _free_memory(device: torch.device) -> float:
    # Without ``torch_free_too`` ComfyUI returns one number, not a pair.
    return cast(float, comfy.model_management.get_free_memory(device))
