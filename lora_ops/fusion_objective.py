"""The objective of gradient fusion, from streamed statistics, and plain averaging as a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .factors import LowRank, difference, norm
from .fusion import Anchor, Fused, Target
from .gram import Gram


def concept_error(change: LowRank | None, target: Target, rows: Tensor) -> float:
    """Return the squared error of a change on a concept's inputs, summed over rows and outputs.

    Args:
        change: The layer's change; None for no change.
        target: The concept's target; its weight is not used.
        rows: ``(row, in)``, a sample of the concept's inputs.
    """
    own = LowRank(target.down, target.up)
    error = own if change is None else difference(change, own)
    hidden = rows.double() @ error.down.mT  # (row, rank)
    outputs = error.up.mT @ error.up
    return max(0.0, float(((hidden.mT @ hidden) * outputs).sum()))


def weighted_error(
    change: LowRank, targets: Sequence[Target], projected: Sequence[Tensor], gram: Gram
) -> float:
    """Return the weighted sum of every concept's squared error, from the summed statistics alone.

    For inputs that were added to ``gram`` to preserve the base, any change of the output counts as
    an error.

    Args:
        change: The layer's change.
        targets: One target for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
    """
    up, down = _up(change).to(gram.matrix), _down(change).to(gram.matrix)
    total = float(((up.mT @ up) * (down @ gram.matrix @ down.mT)).sum())
    for one, part in zip(targets, projected, strict=True):
        own, part = one.up.to(gram.matrix), part.to(gram.matrix)
        total -= 2 * one.weight * float(((up.mT @ own) * (down @ part.mT)).sum())
        seen = part @ one.down.to(gram.matrix).mT  # (rank, rank)
        total += one.weight * float(((own.mT @ own) * seen).sum())
    return max(0.0, total)


def damped_objective(
    fused: Fused,
    targets: Sequence[Target],
    projected: Sequence[Tensor],
    gram: Gram,
    *,
    anchor: Anchor,
) -> float:
    """Return the objective of fusion: weighted error plus damped squared distance to the anchor.

    Args:
        fused: The change, in the coordinates of ``gram``, and its damping.
        targets: One target for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
        anchor: Change that the damping pulls towards: none, or the weighted mean of the changes.
    """
    distance = fused.factors
    if anchor == "average":
        distance = difference(distance, plain_average(targets))
    error = weighted_error(fused.factors, targets, projected, gram)
    return error + fused.damping * norm(distance) ** 2


def damping_at_norm(
    targets: Sequence[Target], projected: Sequence[Tensor], gram: Gram, norm: float
) -> float:
    """Return the relative damping at which the fused change has the given Frobenius norm.

    The damped change is the best of all changes of its norm, so this makes fusion comparable to
    other methods, and safe where the mean eigenvalue is a poor measure of the inputs. It holds for
    the anchor ``base``. The damping is never smaller than the rounding of the Gram matrix, even if
    the norm is then not reached: with less damping the change would follow the rounding.

    Args:
        targets: One target for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
        norm: Norm above 0, for example that of the largest of the concepts' changes.
    """
    rhs = _right_hand_side(targets, projected, gram)  # (out, in)
    values, vectors = torch.linalg.eigh(gram.matrix)
    values = values.clamp(min=0.0)
    energies = (rhs @ vectors).square().sum(0)  # energy of the right-hand side by direction

    def norm_at(damping: float) -> float:
        return float((energies / (values + damping).square()).sum().sqrt())

    least = gram.rounding * float(values[-1])
    if least == 0:  # no inputs, so no change
        return 0.0
    if norm_at(least) <= norm:
        return least / gram.mean_eigenvalue
    low, high = least, float(values[-1])
    while norm_at(high) > norm:
        high *= 2
    for _ in range(200):  # to the last digit, however small the damping
        middle = (low + high) / 2
        low, high = (middle, high) if norm_at(middle) > norm else (low, middle)
    return high / gram.mean_eigenvalue


def _right_hand_side(targets: Sequence[Target], projected: Sequence[Tensor], gram: Gram) -> Tensor:
    """Return the sum of the weighted changes, each times its concept's Gram, ``(out, in)``."""
    return torch.stack(
        [
            one.weight * (one.up.to(gram.matrix) @ part.to(gram.matrix))
            for one, part in zip(targets, projected, strict=True)
        ]
    ).sum(0)


def plain_average(targets: Sequence[Target], *, multiplier: float | None = None) -> LowRank:
    """Return the plain average of the changes, exactly, with the sum of their ranks.

    Args:
        targets: One target for each concept.
        multiplier: Multiplier of every concept; by default its weight divided by the sum of the
            weights, which is ``1 / N`` where these are equal.
    """
    total = sum(one.weight for one in targets)
    multipliers = [one.weight / total if multiplier is None else multiplier for one in targets]
    up = torch.cat([one.up * part for one, part in zip(targets, multipliers, strict=True)], 1)
    shape = targets[0].factors.shape
    down = torch.cat([one.down for one in targets]).view(-1, *shape[1:])
    return LowRank(down, up.view(*up.shape, *(1,) * (len(shape) - 2)))


def _up(change: LowRank) -> Tensor:
    return change.up.flatten(1).double() * change.scale


def _down(change: LowRank) -> Tensor:
    return change.down.flatten(1).double()
