"""Gradient fusion of one layer as the paper states it: dense weights, all activations at hand.

Gu et al. 2023 (arXiv:2305.18292), section 3.2: the fused change is the one whose layer outputs lie
nearest to each concept's own, on that concept's own inputs. Here it is one augmented least-squares
problem in float64, solved by numpy's SVD; nothing of the pack takes part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def wave(*shape: int, rate: float, phase: float) -> Tensor:
    """Return ``sin(rate * k + phase)`` with k the flat index, in float64."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(rate * index + phase).reshape(shape)


def fused_densely(
    deltas: Sequence[Tensor],
    rows: Sequence[Tensor],
    *,
    relative_damping: float = 0.0,
    weights: Sequence[float] | None = None,
    prior: Tensor | None = None,
    average: bool = False,
) -> Tensor:
    """Return the dense change ``(out, in)`` for explicit changes and inputs.

    Args:
        deltas: One dense ``(out, in)`` change for each concept.
        rows: One ``(row, in)`` for each concept.
        relative_damping: In units of the mean eigenvalue of the weighted sum of Gram matrices.
        weights: One for each concept, 1 by default.
        prior: Rows on which nothing shall change.
        average: Whether the weighted mean of the changes is the anchor, in place of no change.
    """
    weights = [1.0] * len(deltas) if weights is None else list(weights)
    anchor = torch.zeros_like(deltas[0])
    if average:
        for delta, weight in zip(deltas, weights, strict=True):
            anchor = anchor + delta * weight / sum(weights)
    inputs, outputs = [], []
    for delta, x, weight in zip(deltas, rows, weights, strict=True):
        for row in x:
            inputs.append(math.sqrt(weight) * row)
            outputs.append(math.sqrt(weight) * ((delta - anchor) @ row))
    for row in prior if prior is not None else ():
        inputs.append(row)
        outputs.append(-(anchor @ row))
    width = deltas[0].shape[1]
    energy = sum(float(row @ row) for row in inputs)
    damping = relative_damping * energy / width
    if damping > 0:
        for row in math.sqrt(damping) * torch.eye(width, dtype=torch.float64):
            inputs.append(row)
            outputs.append(torch.zeros(deltas[0].shape[0], dtype=torch.float64))
    solution, *_ = np.linalg.lstsq(
        torch.stack(inputs).numpy(), torch.stack(outputs).numpy(), rcond=1e-12
    )
    return anchor + torch.from_numpy(solution).mT


def squared_error(change: Tensor, delta: Tensor, rows: Tensor) -> float:
    """Return what ``change`` misses of ``delta`` on ``rows``, summed over rows and outputs."""
    total = 0.0
    for row in rows:
        missed = change @ row - delta @ row
        total += float(missed @ missed)
    return total
