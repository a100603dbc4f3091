"""Riemannian preconditioner of low-rank factors: rescale each gradient by the other factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-20  # added to relative damping, so that the inverse of a zero Gram matrix is finite


@dataclass(frozen=True)
class Damping:
    """The damping that is added to the diagonal of every Gram matrix before it is inverted.

    Args:
        amount: Amount of damping, at least 0; at 0 a singular Gram matrix gets its pseudo-inverse.
        relative: Whether the amount is in units of the Gram's mean eigenvalue, so that a step does
            not depend on how the magnitude is split between the factors; otherwise it is absolute.

    Raises:
        ValueError: The amount is negative or NaN.
    """

    amount: float = 1e-2
    relative: bool = True

    def __post_init__(self) -> None:
        if not self.amount >= 0:
            raise ValueError(f"damping must be at least 0, got {self.amount}; raise it")


@dataclass(frozen=True)
class FactorGradients:
    """The factors of one layer and the gradients of their learnt parts.

    A gradient may cover only some columns of ``down`` or some rows of ``up``. The Gram matrices are
    those of the whole factors, frozen halves included, because a learnt row acts through all of the
    other factor.

    Args:
        down: ``(rank, in, ...)``. ``A`` in the paper.
        up: ``(out, rank, ...)``. ``B`` in the paper.
        grad_down: ``(rank, columns, ...)``, or ``None`` if no column is learnt.
        grad_up: ``(rows, rank, ...)``, or ``None`` if no row is learnt.

    Raises:
        ValueError: The factors don't share the rank axis.
    """

    down: Tensor
    up: Tensor
    grad_down: Tensor | None
    grad_up: Tensor | None

    def __post_init__(self) -> None:
        if self.down.shape[0] != self.up.shape[1]:
            raise ValueError(
                "down and up must share the rank axis, "
                f"got {tuple(self.down.shape)} and {tuple(self.up.shape)}"
            )


@dataclass(frozen=True)
class PreconditionedGradients:
    """PreconditionedGradients gradients of all layers, and statistics of the step.

    Args:
        gradients: Gradients of ``down`` and ``up`` for every layer, in the gradients' dtype.
        metric_norm: Norm of the whole gradient in the metric, a scalar in fp32 or better.
        singular: Number of singular Gram matrices, which got their pseudo-inverse.
    """

    gradients: list[tuple[Tensor | None, Tensor | None]]
    metric_norm: Tensor
    singular: int


def riemannian_gradients(
    layers: Sequence[FactorGradients], damping: Damping
) -> PreconditionedGradients:
    """Return each factor's gradient times the inverse Gram matrix of the other factor.

    Both Gram matrices are taken before the step. Without damping, a step along the result changes
    ``up @ down`` equally for all factors of one product: ``(S^-1 down, up S)`` for any invertible
    S. The norm is ``sqrt(<g_up', g_up> + <g_down', g_down>)``, which is independent of S too; a
    plain norm is not. Computed in fp32 or better.

    Args:
        layers: Layers of any ranks; Gram matrices of equal rank are inverted together.
        damping: Damping of all Gram matrices.

    Reference: Zhang & Pilanci 2024, arXiv:2402.02347.
    """
    grams = []
    for layer in layers:
        if layer.grad_down is not None:
            grams.append(gram(layer.up.movedim(1, 0)))
        if layer.grad_up is not None:
            grams.append(gram(layer.down))
    inverses, singular = inverse_grams(grams, damping)
    left = iter(inverses)
    gradients: list[tuple[Tensor | None, Tensor | None]] = []
    squares = []
    for layer in layers:
        down = up = None
        if layer.grad_down is not None:
            down, square = _rescaled(layer.grad_down, 0, next(left))
            squares.append(square)
        if layer.grad_up is not None:
            up, square = _rescaled(layer.grad_up, 1, next(left))
            squares.append(square)
        gradients.append((down, up))
    total = torch.stack(squares).sum() if squares else torch.zeros(())
    return PreconditionedGradients(gradients, total.clamp_min(0).sqrt(), singular)


def gram(factor: Tensor) -> Tensor:
    """Return ``factor @ factor^T`` over all axes but the first, ``(rank, rank)``.

    Args:
        factor: ``(rank, ...)``; computed in fp32 or better.
    """
    flat = exact(factor).flatten(1)  # (rank, width)
    return flat @ flat.mT


def inverse_grams(grams: Sequence[Tensor], damping: Damping) -> tuple[list[Tensor], int]:
    """Return the inverse of every damped Gram matrix, and the number of pseudo-inverses.

    Args:
        grams: ``(rank, rank)`` each.
        damping: Damping of all Gram matrices.
    """
    roots, singular = inverse_roots(grams, damping)
    return [root.mT @ root for root in roots], singular


def inverse_roots(grams: Sequence[Tensor], damping: Damping) -> tuple[list[Tensor], int]:
    """Return ``R`` with ``R^T R`` the inverse of each damped Gram, and the number of singular ones.

    ``R @ factor`` has orthonormal rows. Gram matrices of equal rank share one batched Cholesky
    decomposition. In a singular Gram matrix, directions below its precision count as zero and are
    left out: ``R^T R`` is then the pseudo-inverse.

    Args:
        grams: ``(rank, rank)`` each.
        damping: Damping of all Gram matrices.
    """
    stacks: dict[int, list[int]] = defaultdict(list)
    for number, matrix in enumerate(grams):
        stacks[len(matrix)].append(number)
    roots: list[Tensor] = list(grams)
    singular = 0
    for numbers in stacks.values():
        damped = _damped(torch.stack([grams[number] for number in numbers]), damping)
        stack, lost = _inverse_root(damped)
        singular += lost
        for number, root in zip(numbers, stack.unbind(), strict=True):
            roots[number] = root
    return roots, singular


def exact(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or unchanged if its dtype is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def singular_below(stack: Tensor) -> Tensor:
    """Return the eigenvalue below which the directions of a Gram are rounding, ``(batch,)``."""
    rank = stack.shape[-1]
    return rank * torch.finfo(stack.dtype).eps * stack.diagonal(dim1=-2, dim2=-1).amax(-1)


def require_finite(stack: Tensor) -> None:
    """Raise unless all numbers are finite.

    Raises:
        RuntimeError: A number is infinite or NaN.
    """
    broken = len(stack) - int(stack.isfinite().all(-1).all(-1).sum())
    if broken:
        raise RuntimeError(
            f"factors and gradients must stay finite numbers, got others in {broken} of "
            f"{len(stack)} Gram matrices; lower the learning rate"
        )


def _damped(stack: Tensor, damping: Damping) -> Tensor:
    rank = stack.shape[-1]
    amount = torch.full_like(stack[:, 0, 0], damping.amount)  # (batch,)
    if damping.relative:
        amount = amount * stack.diagonal(dim1=-2, dim2=-1).sum(-1) / rank
        if damping.amount:
            amount = amount + TINY
    return stack + amount.view(-1, 1, 1) * torch.eye(rank, dtype=stack.dtype, device=stack.device)


def _inverse_root(stack: Tensor) -> tuple[Tensor, int]:
    root, failed = torch.linalg.cholesky_ex(stack)  # (batch, rank, rank)
    smallest = root.diagonal(dim1=-2, dim2=-1).amin(-1).square()
    unsafe = (failed != 0) | ~(smallest > singular_below(stack))
    count = int(unsafe.sum())
    unit = torch.eye(stack.shape[-1], dtype=stack.dtype, device=stack.device)
    if count:
        root = torch.where(unsafe.view(-1, 1, 1), unit, root)
    inverse = torch.linalg.solve_triangular(root, unit, upper=False)
    if count:
        require_finite(stack)
        values, vectors = torch.linalg.eigh(stack[unsafe])
        kept = values > singular_below(stack[unsafe]).view(-1, 1)
        scales = torch.where(kept, values, 1.0).rsqrt() * kept  # (batch, rank)
        inverse[unsafe] = scales.unsqueeze(-1) * vectors.mT
    return inverse, count


def _rescaled(gradient: Tensor, axis: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient times the inverse along its rank axis, and its dot product with both."""
    wide = exact(gradient)
    inverse = inverse.to(wide.dtype)
    if axis and wide.ndim == 2:
        result = wide @ inverse  # the inverse is symmetric, and nothing is copied
    else:
        moved = wide.movedim(axis, 0)
        result = (inverse @ moved.flatten(1)).view(moved.shape).movedim(0, axis)
    square = torch.dot(wide.reshape(-1), result.reshape(-1))
    return result.to(gradient.dtype), square
