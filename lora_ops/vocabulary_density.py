"""Kernel density of a text encoder's vocabulary, as a penalty on learnt embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

# Bandwidth that the released research code uses for CLIP-L; its penalty has a weight of 0.002.
RELEASED_BANDWIDTH = 0.5

_TERMS = 40  # terms of the series
_CHUNK_ROWS = 4096  # vocabulary rows summed at once


@dataclass(frozen=True)
class VocabularyDensity:
    """The density of a vocabulary's rows in each dimension, under a Gaussian kernel.

    A sum over fifty thousand rows in every step would cost more than the step. The kernel is wide
    compared with the vocabulary, so its series in the distance from the mean is summed once, term
    by term (the fast Gauss transform, Greengard & Strain 1991).

    Args:
        centre: Mean row, ``(dim,)``.
        moments: ``(term, dim)``, the mean over the vocabulary of ``e^k exp(-e^2)``, where ``e`` is
            the distance of a row from the centre in units of ``sqrt(2)`` bandwidths.
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
            bandwidth: Standard deviation of the kernel, above 0.
        """
        parts = vocabulary.detach().split(_CHUNK_ROWS)
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
        """Return the summed ``-log`` density of the rows relative to the mean row, a scalar.

        Densities are summed over the dimensions before the logarithm, as in the released code. The
        released sum omits the density of the mean row, a constant without a gradient.

        Args:
            rows: ``(..., dim)`` in fp32, within a few bandwidths of the vocabulary in each
                dimension.

        Reference: Gu et al. 2023, arXiv:2305.18292, released research code.
        """
        centre, moments = self.centre.to(rows.device), self.moments.to(rows.device)
        away = (rows - centre) / (sqrt(2) * self.bandwidth)
        twice, series = 2 * away, moments[-1].expand_as(away)
        for k in range(len(moments) - 1, 0, -1):
            series = moments[k - 1] + twice / k * series
        density = ((-away.square()).exp() * series).sum(dim=-1)
        return (moments[0].sum().log() - density.log()).sum()
