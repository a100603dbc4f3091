"""How near learnt embeddings lie to a vocabulary: a kernel density per dimension, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

RELEASED_BANDWIDTH = 0.5
"""The released research code's for CLIP-L; its weight of the penalty is 0.002."""

_TERMS = 40
_READ_AT_ONCE = 4096  # rows of a vocabulary


@dataclass(frozen=True)
class VocabularyDensity:
    """The density of a vocabulary's rows in each dimension, under a Gaussian kernel.

    A sum over fifty thousand rows in every step would cost more than the step: the kernel is wide
    beside the vocabulary, so its series in the distance from the mean is summed once, term by term
    (the fast Gauss transform, Greengard & Strain 1991).

    Args:
        centre: Mean row, ``(dim,)``.
        moments: ``(term, dim)``, the mean over the vocabulary of ``e^k exp(-e^2)``, where ``e`` is a
            row's distance from the centre in ``sqrt(2)`` bandwidths.
        bandwidth: Standard deviation of the kernel.
    """

    centre: Tensor
    moments: Tensor
    bandwidth: float

    @staticmethod
    def of(vocabulary: Tensor, bandwidth: float) -> VocabularyDensity:
        """Return the density of a vocabulary.

        Args:
            vocabulary: ``(word, dim)``, any float dtype and device.
            bandwidth: Of the kernel, above 0.
        """
        parts = vocabulary.detach().split(_READ_AT_ONCE)
        sums = torch.zeros(_TERMS, vocabulary.shape[1], dtype=torch.float64)
        total = sum((part.double().cpu().sum(dim=0) for part in parts), start=sums[0].clone())
        centre = total / len(vocabulary)
        for part in parts:
            away = ((part.double().cpu() - centre) / (sqrt(2) * bandwidth)).float()
            term = (-away.square()).exp()
            for k in range(_TERMS):
                sums[k] += term.sum(dim=0, dtype=torch.float64)
                term = term * away
        return VocabularyDensity(centre.float(), (sums / len(vocabulary)).float(), bandwidth)

    def penalty(self, rows: Tensor) -> Tensor:
        """Return the rows' summed ``-log`` density beside the vocabulary's mean row, a scalar.

        Densities are summed over the dimensions before the logarithm, as in the released code. The
        released sum lacks the mean row's share, a constant without a gradient.

        Args:
            rows: ``(..., dim)``, fp32; within some bandwidths of the vocabulary in each dimension.

        Reference: Gu et al. 2023, arXiv:2305.18292, released research code.
        """
        centre, moments = self.centre.to(rows.device), self.moments.to(rows.device)
        away = (rows - centre) / (sqrt(2) * self.bandwidth)
        twice, series = 2 * away, moments[-1].expand_as(away)
        for k in range(len(moments) - 1, 0, -1):
            series = moments[k - 1] + twice / k * series
        density = ((-away.square()).exp() * series).sum(dim=-1)
        return (moments[0].sum().log() - density.log()).sum()
