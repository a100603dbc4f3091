"""Attention regulariser: a penalty on the attention that words receive outside an object's mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED_WEIGHT = 0.01  # weight in the released code, relative to its masked loss

# The released masked loss is larger than a mean by this factor: it divides the sum over all
# channels by the mask's sum over one channel.
LATENT_CHANNELS = 4

# The equivalent weight relative to a masked loss that is a mean, which this pack uses.
RELATIVE_WEIGHT = RELEASED_WEIGHT / LATENT_CHANNELS


def attention_penalty(maps: Sequence[Tensor], mask: Tensor, fill_mask: bool = False) -> Tensor:
    """Return the attention that each row's words receive outside its mask, ``(row,)``.

    Every map is divided by its own maximum and averaged over the cells outside the mask; the
    averages are summed over words and layer sizes. A size at which a row's mask is white everywhere
    adds nothing to that row.

    Args:
        maps: Attention to the words, ``(row, word, h, w)`` for each size of the layers.
        mask: ``(row, 1, height, width)`` in 0..1, resized to each map by nearest neighbour.
        fill_mask: Whether the last word's map is compared with the mask itself by mean squared
            error, so that the word must also fill the mask.

    Note:
        The released code divides by the maximum of the whole batch and averages over the batch's
        cells. Here each row is normalised on its own, so that splitting a batch changes nothing.

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
