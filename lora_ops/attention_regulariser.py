"""Keeping words to their place: what their attention outside an object's mask costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED_WEIGHT = 0.01
"""Of the released code, beside its own masked loss."""

LATENT_CHANNELS = 4
"""By which the released masked loss exceeds the mean over what counts: it divides a sum over all
channels by the mask's sum over one."""

RELATIVE_WEIGHT = RELEASED_WEIGHT / LATENT_CHANNELS
"""The same weight beside a loss that is a mean, as this pack's is."""


def attention_penalty(maps: Sequence[Tensor], mask: Tensor, fill_mask: bool = False) -> Tensor:
    """Return how much each row's words are looked at outside its mask, ``(row,)``.

    Every map is divided by its own maximum and averaged over the cells outside the mask; words
    and sizes are added up. A row whose mask is white everywhere at a size costs nothing there.

    Args:
        maps: Attention to the words, ``(row, word, h, w)`` for each size of the layers.
        mask: ``(row, 1, height, width)`` in 0..1; its nearest cells stand for those of a map.
        fill_mask: The last word's map is compared with the mask itself, mean squared, so that it
            must also fill it.

    # Differs from the released code: it divides by the maximum of the whole batch and averages over
    the batch's cells. Here each row has its own, so that splitting a batch changes nothing.

    Reference: Gu et al. 2023, arXiv:2305.18292, released code of the main branch.
    """
    total = mask.new_zeros(mask.shape[0])
    for found in maps:
        inside = F.interpolate(mask, size=found.shape[-2:], mode="nearest")  # (row, 1, h, w)
        highest = found.flatten(2).amax(dim=2)[..., None, None]
        shares = found / highest.clamp_min(torch.finfo(found.dtype).tiny)
        outside = (inside == 0).to(shares)
        count = outside.flatten(1).sum(dim=1)  # (row,)
        spilt = (shares * outside).flatten(2).sum(dim=2) / count.clamp_min(1)[:, None]
        if fill_mask:
            apart = (shares[:, -1:] - inside).square().flatten(1).mean(dim=1)
            spilt = torch.cat([spilt[:, :-1], apart[:, None]], dim=1)
        total = total + torch.where(count > 0, spilt.sum(dim=1), torch.zeros_like(total))
    return total
