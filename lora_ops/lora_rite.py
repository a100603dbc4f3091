"""LoRA-RITE: an adaptive step that is the same for all factors of one product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .preconditioner import Damping, exact, gram, inverse_roots, require_finite, singular_below


@dataclass(frozen=True)
class Unmagnified:
    """A learnt part's gradient in an orthonormal basis of the other factor.

    Args:
        gradient: ``(rows, rank)``; it depends on the other factor's row space alone.
        basis: ``(rank, width)``, the orthonormal rows.
        root: ``(rank, rank)``; ``basis = root @ other``, and ``step @ root`` is a step of the part.
    """

    gradient: Tensor
    basis: Tensor
    root: Tensor


@dataclass(frozen=True)
class RiteState:
    """What a learnt part remembers between steps, in coordinates of ``basis``.

    Args:
        first: First moment, ``(rows, rank)``.
        second: Second moment, ``(rank, rank)``.
        escaped: Second moment lost to turns of the basis, a scalar.
        basis: Of the step before, ``(rank, width)``.
        steps: Taken so far.
    """

    first: Tensor
    second: Tensor
    escaped: Tensor
    basis: Tensor
    steps: int


def unmagnified(
    gradients: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[list[Unmagnified], int]:
    """Return every gradient in a basis of its other factor, and how many of those are singular.

    Their plain norm is the norm in the metric of ``riemannian_gradients``. Directions in which the
    other factor is zero get no gradient and no step.

    Args:
        gradients: ``(rows, rank)`` each; for a learnt ``down``, its transpose.
        others: ``(rank, width)`` each, the whole other factor; for ``up``, its transpose.

    Reference: Yen et al. 2024, arXiv:2410.20625, section 3.2.
    """
    roots, singular = inverse_roots([gram(other) for other in others], Damping(0.0))
    return [
        Unmagnified(exact(gradient) @ root.mT, root @ exact(other), root)
        for gradient, other, root in zip(gradients, others, roots, strict=True)
    ], singular


def rite_steps(
    parts: Sequence[Unmagnified],
    states: Sequence[RiteState | None],
    *,
    betas: tuple[float, float],
    tiny: float = 1e-8,
) -> list[tuple[Tensor, RiteState]]:
    """Return the step of every part, ``(rows, rank)``, to be taken times the learning rate.

    The moments are carried from the basis of the step before into the new one; what the second
    moment loses by that is added back to all directions, so that no direction is taken for one
    that was never seen. Equal for all factors of one product.

    Args:
        parts: As ``unmagnified`` returns them.
        states: Of the step before; ``None`` at a part's first.
        betas: Decay of the first and of the second moment.
        tiny: Added to the root of the second moment.

    Reference: Yen et al. 2024, arXiv:2410.20625, algorithm 1.
    """
    # Differs from the paper: the second moment decays, as Adam's does and the authors' code has it;
    # the algorithm as printed adds up. Decays are corrected for the zero start.
    ranks: dict[int, list[int]] = defaultdict(list)
    for number, part in enumerate(parts):
        ranks[len(part.root)].append(number)
    results: dict[int, tuple[Tensor, RiteState]] = {}
    for numbers in ranks.values():
        found = _stack_steps(
            [parts[number] for number in numbers],
            [states[number] for number in numbers],
            betas,
            tiny,
        )
        results.update(zip(numbers, found, strict=True))
    return [results[number] for number in range(len(parts))]


def corrected_decay(beta: float, steps: int) -> float:
    """Return the decay after ``steps`` steps that needs no bias correction: 0 at the first."""
    return beta * (1 - beta**steps) / (1 - beta ** (steps + 1))


def _stack_steps(
    parts: Sequence[Unmagnified],
    states: Sequence[RiteState | None],
    betas: tuple[float, float],
    tiny: float,
) -> list[tuple[Tensor, RiteState]]:
    steps = [0 if state is None else state.steps for state in states]
    like = parts[0].root
    nothing = torch.zeros_like(like)
    turns = torch.stack(
        [
            nothing if state is None else part.basis @ state.basis.mT
            for part, state in zip(parts, states, strict=True)
        ]
    )  # (part, rank, rank)
    before = torch.stack([nothing if state is None else state.second for state in states])
    escaped = torch.stack([like.new_zeros(()) if s is None else s.escaped for s in states])
    decay = like.new_tensor([corrected_decay(betas[1], taken) for taken in steps])
    rows = like.new_tensor([len(part.gradient) for part in parts]).view(-1, 1, 1)
    squares = torch.stack([part.gradient.mT @ part.gradient for part in parts]) / rows
    carried = _symmetric(turns @ before @ turns.mT)
    escaped = decay * (escaped + _lost(before, carried))
    kept = decay.view(-1, 1, 1)
    second = _symmetric(kept * carried + (1 - kept) * squares)
    require_finite(second)
    scales = _inverse_square_roots(second, escaped, tiny)

    keep = like.new_tensor([corrected_decay(betas[0], taken) for taken in steps]).view(-1, 1, 1)
    scales, turns = (1 - keep) * scales, keep * turns

    results = []
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        first = part.gradient @ scales[number]  # (rows, rank)
        if state is not None:
            first.addmm_(state.first, turns[number].mT)
        kept_state = RiteState(
            first, second[number], escaped[number], part.basis, steps[number] + 1
        )
        results.append((first @ part.root, kept_state))
    return results


def _lost(before: Tensor, carried: Tensor) -> Tensor:
    """Return the most that any eigenvalue fell by, at most the trace's fall, ``(part,)``."""
    fell = (torch.linalg.eigvalsh(before) - torch.linalg.eigvalsh(carried)).amax(-1)
    trace = (before - carried).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.minimum(fell, trace).clamp_min(0)


def _inverse_square_roots(second: Tensor, escaped: Tensor, tiny: float) -> Tensor:
    values, vectors = torch.linalg.eigh(second)
    # Below this they are rounding, and dividing by their root would only amplify noise.
    values = torch.maximum(values, singular_below(second).view(-1, 1))
    scales = 1 / ((values + escaped.view(-1, 1)).sqrt() + tiny)
    return (vectors * scales.unsqueeze(-2)) @ vectors.mT


def _symmetric(stack: Tensor) -> Tensor:
    return (stack + stack.mT) / 2
