"""How well a change serves the concepts, without their activations; and what fusion is compared to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .factors import LowRank, difference, norm
from .fusion import Anchor, Fused, Wanted
from .gram import Gram


def concept_error(change: LowRank | None, wanted: Wanted, rows: Tensor) -> float:
    """Return the squared error of a change on a concept's inputs, summed over rows and outputs.

    Args:
        change: Of the layer; None for no change.
        wanted: The concept's wish; its weight plays no part.
        rows: ``(row, in)``, of the concept's own inputs.
    """
    own = LowRank(wanted.down, wanted.up)
    missed = own if change is None else difference(change, own)
    hidden = rows.double() @ missed.down.mT  # (row, rank)
    outputs = missed.up.mT @ missed.up
    return max(0.0, float(((hidden.mT @ hidden) * outputs).sum()))


def weighted_error(
    change: LowRank, wanted: Sequence[Wanted], projected: Sequence[Tensor], gram: Gram
) -> float:
    """Return the weighted sum of every concept's squared error, from the summed statistics alone.

    Inputs that were added to ``gram`` to preserve the base count with their outputs' change.

    Args:
        change: Of the layer.
        wanted: One for each concept.
        projected: ``(rank, in)`` for each concept, ``down @ G_i``, unweighted.
        gram: Sum of the concepts' Gram matrices times their weights.
    """
    up, down = _up(change).to(gram.matrix), _down(change).to(gram.matrix)
    total = float(((up.mT @ up) * (down @ gram.matrix @ down.mT)).sum())
    for one, part in zip(wanted, projected, strict=True):
        own, part = one.up.to(gram.matrix), part.to(gram.matrix)
        total -= 2 * one.weight * float(((up.mT @ own) * (down @ part.mT)).sum())
        seen = part @ one.down.to(gram.matrix).mT  # (rank, rank)
        total += one.weight * float(((own.mT @ own) * seen).sum())
    return max(0.0, total)


def damped_objective(
    fused: Fused,
    wanted: Sequence[Wanted],
    projected: Sequence[Tensor],
    gram: Gram,
    *,
    anchor: Anchor,
) -> float:
    """Return what fusion makes small: the weighted error, and the damped distance to the anchor.

    Args:
        fused: The change, in the coordinates of ``gram``, and its damping.
        wanted: As in ``weighted_error``, as are the next two.
        projected: One for each concept.
        gram: Of all.
        anchor: What the damping pulls to.
    """
    away = fused.factors
    if anchor == "average":
        away = difference(away, plain_average(wanted))
    error = weighted_error(fused.factors, wanted, projected, gram)
    return error + fused.damping * norm(away) ** 2


def damping_at_norm(
    wanted: Sequence[Wanted], projected: Sequence[Tensor], gram: Gram, norm: float
) -> float:
    """Return the relative damping at which the fused change has a Frobenius norm.

    The damped change is the best of all changes of its norm, so this makes fusion comparable to any
    other way, and safe where the mean eigenvalue is a poor measure of the inputs. It holds for the
    anchor ``base``. Where even a damping as small as the Gram's rounding leaves less than the norm,
    it is that one: with less, the change would follow the rounding.

    Args:
        wanted: One for each concept.
        projected: As in ``weighted_error``.
        gram: As in ``weighted_error``.
        norm: Above 0, for example that of the largest of the concepts' own changes.
    """
    asked = _asked(wanted, projected, gram)  # (out, in)
    values, vectors = torch.linalg.eigh(gram.matrix)
    values = values.clamp(min=0.0)
    energies = (asked @ vectors).square().sum(0)  # asked of each direction

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


def _asked(wanted: Sequence[Wanted], projected: Sequence[Tensor], gram: Gram) -> Tensor:
    """Return the sum of the weighted changes, each times its own Gram, ``(out, in)``."""
    return torch.stack(
        [
            one.weight * (one.up.to(gram.matrix) @ part.to(gram.matrix))
            for one, part in zip(wanted, projected, strict=True)
        ]
    ).sum(0)


def plain_average(wanted: Sequence[Wanted], *, share: float | None = None) -> LowRank:
    """Return the plain average of the changes, exactly, with the sum of their ranks.

    Args:
        wanted: One for each concept.
        share: Every concept's multiplier; by default its part of the weights, ``1 / N`` where
            these are equal.
    """
    whole = sum(one.weight for one in wanted)
    shares = [one.weight / whole if share is None else share for one in wanted]
    up = torch.cat([one.up * part for one, part in zip(wanted, shares, strict=True)], 1)
    shape = wanted[0].factors.shape
    down = torch.cat([one.down for one in wanted]).view(-1, *shape[1:])
    return LowRank(down, up.view(*up.shape, *(1,) * (len(shape) - 2)))


def _up(change: LowRank) -> Tensor:
    return change.up.flatten(1).double() * change.scale


def _down(change: LowRank) -> Tensor:
    return change.down.flatten(1).double()
