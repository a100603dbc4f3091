"""LoRA-RITE: an adaptive step that does not depend on how the product is split into factors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .preconditioner import Damping, exact, gram, inverse_roots, require_finite, singular_below


@dataclass(frozen=True)
class UnmagnifiedGradient:
    """The gradient of a learnt part, expressed in an orthonormal basis of the other factor.

    Args:
        gradient: ``(rows, rank)``; it depends only on the row space of the other factor.
        basis: ``(rank, width)``, orthonormal rows.
        root: ``(rank, rank)`` with ``basis = root @ other``; ``step @ root`` is a step of the part.
    """

    gradient: Tensor
    basis: Tensor
    root: Tensor


@dataclass(frozen=True)
class RiteState:
    """Optimizer state of a learnt part, in coordinates of ``basis``.

    Args:
        first: First moment, ``(rows, rank)``.
        second: Second moment, ``(rank, rank)``.
        escaped: Escaped mass, a scalar: second moment lost when the basis rotates.
        basis: Basis of the last step, ``(rank, width)``.
        steps: Number of steps taken.
    """

    first: Tensor
    second: Tensor
    escaped: Tensor
    basis: Tensor
    steps: int


def unmagnified(
    gradients: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[list[UnmagnifiedGradient], int]:
    """Return every gradient in a basis of the other factor, and the number of singular factors.

    The plain norm of such a gradient is its norm in the metric of ``riemannian_gradients``.
    Directions in which the other factor is zero get no gradient and no step.

    Args:
        gradients: ``(rows, rank)`` each, transposed for a learnt ``down``.
        others: ``(rank, width)`` each, the whole other factor, transposed if it is ``up``.

    Reference: Yen et al. 2024, arXiv:2410.20625, section 3.2.
    """
    roots, singular = inverse_roots([gram(other) for other in others], Damping(0.0))
    return [
        UnmagnifiedGradient(exact(gradient) @ root.mT, root @ exact(other), root)
        for gradient, other, root in zip(gradients, others, roots, strict=True)
    ], singular


def rite_steps(
    parts: Sequence[UnmagnifiedGradient],
    states: Sequence[RiteState | None],
    *,
    betas: tuple[float, float],
    tiny: float = 1e-8,
) -> list[tuple[Tensor, RiteState]]:
    """Return the step and new state of every part; the step still lacks the learning rate.

    The moments are transformed from the last step's basis into the new one. What the second moment
    loses by this is added to all directions, so that no direction counts as never seen. The change
    of the product is the same for all factors of one product.

    Args:
        parts: Gradients from ``unmagnified``.
        states: States after the last step; ``None`` for a part without one.
        betas: Decay rates of the first and the second moment.
        tiny: Number added to the root of the second moment.

    Note:
        The second moment decays, as in Adam and in the authors' code; the printed algorithm sums
        it. Decay rates are corrected for the start at zero.

    Reference: Yen et al. 2024, arXiv:2410.20625, algorithm 1.
    """
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
    """Return the decay rate after ``steps`` steps that includes bias correction: 0 at the first."""
    return beta * (1 - beta**steps) / (1 - beta ** (steps + 1))


def _stack_steps(
    parts: Sequence[UnmagnifiedGradient],
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
    """Return the largest decrease of an eigenvalue, at most the trace's decrease, ``(part,)``."""
    fell = (torch.linalg.eigvalsh(before) - torch.linalg.eigvalsh(carried)).amax(-1)
    trace = (before - carried).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.minimum(fell, trace).clamp_min(0)


def _inverse_square_roots(second: Tensor, escaped: Tensor, tiny: float) -> Tensor:
    values, vectors = torch.linalg.eigh(second)
    # Smaller eigenvalues are rounding, and dividing by their root would only amplify noise.
    values = torch.maximum(values, singular_below(second).view(-1, 1))
    scales = 1 / ((values + escaped.view(-1, 1)).sqrt() + tiny)
    return (vectors * scales.unsqueeze(-2)) @ vectors.mT


def _symmetric(stack: Tensor) -> Tensor:
    return (stack + stack.mT) / 2
