"""Streamed statistics of a layer's inputs, which gradient fusion uses in place of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SPAN_TOLERANCE = 1e-6  # a span contains a unit row if less than this length lies outside it

# Number of rows in one fp32 product. Chunks are summed in fp64, which is 10 times more accurate
# than fp32 throughout.
CHUNK_ROWS = 4096

# If all products were fp64, eigenvalues below this fraction of the largest count as zero.
EXACT_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Gram:
    """The Gram matrix ``X^T X`` of one input, shared by all layers that read this input.

    Gram matrices of the same input can be summed over chunks, prompts and concepts, and subtracted
    again (``GramStream.merge``).

    Args:
        matrix: ``(in, in)`` in fp64, or ``(span, span)`` for inputs projected to a span.
        rows: Number of input rows counted, whatever their weight.
        energy: Sum of squares of the whole input: the trace, unless the input is projected.
        width: Width of the whole input.
        rounded: Whether any of the products was computed in fp32.
        span: ``(span, in)`` orthonormal rows in fp64 to whose span the inputs are projected; None
            for the whole input.
    """

    matrix: Tensor
    rows: int
    energy: float
    width: int
    rounded: bool = False
    span: Tensor | None = None

    @property
    def mean_eigenvalue(self) -> float:
        """Return the mean energy of one direction of the input, the unit of relative damping."""
        return self.energy / self.width

    @property
    def rounding(self) -> float:
        """Return the typical rounding error of an eigenvalue, as a fraction of the largest."""
        return torch.finfo(torch.float32).eps if self.rounded else EXACT_TOLERANCE

    @property
    def zero_below(self) -> float:
        """Return the fraction of the largest eigenvalue below which one may be pure rounding."""
        return len(self.matrix) * self.rounding if self.rounded else self.rounding

    def within(self, span: Tensor | None) -> Gram:
        """Return the statistics of the same inputs, projected to a narrower span.

        Args:
            span: ``(span, in)`` orthonormal rows; None for the whole input.

        Raises:
            ValueError: The present span doesn't contain the given one.
        """
        if not span_holds(self.span, span):
            raise ValueError(
                "statistics can be narrowed to a span that theirs holds alone, got one of other "
                "rows; collect them again"
            )
        if span is None or (self.span is not None and torch.equal(self.span, span)):
            return self
        turn = span if self.span is None else span @ self.span.mT  # (span, wider span)
        turn = turn.to(self.matrix)
        return replace(self, matrix=turn @ self.matrix @ turn.mT, span=span)


def span_holds(outer: Tensor | None, inner: Tensor | None) -> bool:
    """Return whether a span contains all rows of another, both ``(span, in)``.

    None is the whole input, which contains any span.
    """
    if outer is None or inner is None:
        return outer is None
    outside = inner - (inner @ outer.mT) @ outer
    return bool((outside.norm(dim=1) < SPAN_TOLERANCE).all())


class GramStream:
    """Sums input rows into a ``Gram``; a forward hook calls ``add`` and keeps no activations.

    Args:
        width: Width of the layer's input.
        span: ``(span, in)`` orthonormal rows to whose span the inputs are projected, for inputs too
            wide for an ``(in, in)`` matrix; None for no projection.
        device: Device of the sums; it must support fp64.
        start: Initial value of the sums, within the same span. Its matrix is changed in place.
    """

    def __init__(
        self,
        width: int,
        *,
        span: Tensor | None = None,
        device: torch.device | str = "cpu",
        start: Gram | None = None,
    ) -> None:
        size = width if span is None else span.shape[0]
        if start is None:
            zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
            start = Gram(zeros, 0, 0.0, width, span=span)
        self._matrix = start.matrix
        self._span = span
        self._width = width
        self._rows = start.rows
        self._energy = start.energy
        self._rounded = start.rounded

    @torch.no_grad()
    def add(self, x: Tensor, *, label: str, weight: float = 1.0) -> None:
        """Count the rows of ``x``.

        Args:
            x: ``(..., in)``, of any float dtype.
            label: Name of the input in error messages: the layer and the prompt.
            weight: Weight of these rows in the sums; a negative weight removes them again.

        Raises:
            ValueError: The width differs, or a value is not finite. The sums are then unchanged.
        """
        rows = _checked_rows(x, self._width, label)
        with full_precision(rows.device):
            for chunk in rows.split(CHUNK_ROWS):
                chunk = _raised(chunk)
                if self._span is not None:
                    self._energy += weight * float(chunk.square().sum())
                    chunk = chunk @ self._span.to(chunk).mT  # (row, span)
                product = chunk.mT @ chunk
                self._matrix.add_(product.to(self._matrix.device), alpha=weight)
        self._rows += rows.shape[0] if weight >= 0 else -rows.shape[0]
        self._rounded = self._rounded or x.dtype != torch.float64

    def merge(self, other: Gram, weight: float = 1.0) -> None:
        """Add statistics of the same input that were collected separately.

        Args:
            other: Statistics within the same span or a wider one.
            weight: Weight of the statistics; a negative weight removes them again.
        """
        other = other.within(self._span)
        self._matrix.add_(other.matrix.to(self._matrix), alpha=weight)
        self._rows += other.rows if weight >= 0 else -other.rows
        self._energy += weight * other.energy
        self._rounded = self._rounded or other.rounded

    def total(self) -> Gram:
        """Return a copy of the sums so far."""
        now = self.live()
        return replace(now, matrix=now.matrix.clone())

    def live(self) -> Gram:
        """Return the sums so far without a copy: rows added later change its matrix."""
        energy = self._energy if self._span is not None else float(self._matrix.trace())
        return Gram(self._matrix, self._rows, energy, self._width, self._rounded, self._span)


class ProjectedStream:
    """Sums ``down @ x^T x`` for the layers that share an input, without an ``(in, in)`` matrix.

    Args:
        downs: ``(rank, in)`` each, by the layer's name.
        width: Width of the input.
        device: Device of the sums; it must support fp64.
    """

    def __init__(
        self, downs: Mapping[str, Tensor], *, width: int, device: torch.device | str = "cpu"
    ) -> None:
        self._downs = {name: down.flatten(1) for name, down in downs.items()}
        self._width = width
        self._sums = {
            name: torch.zeros(down.shape, dtype=torch.float64, device=device)
            for name, down in self._downs.items()
        }

    @torch.no_grad()
    def add(self, x: Tensor, *, label: str, weight: float = 1.0) -> None:
        """Count the rows of ``x``, with the arguments and errors of ``GramStream.add``."""
        rows = _checked_rows(x, self._width, label)
        with full_precision(rows.device):
            for chunk in rows.split(CHUNK_ROWS):
                chunk = _raised(chunk)
                for name, down in self._downs.items():
                    hidden = chunk @ down.to(chunk).mT  # (row, rank)
                    product = (hidden.mT @ chunk).to(self._sums[name].device)
                    self._sums[name].add_(product, alpha=weight)

    def total(self) -> dict[str, Tensor]:
        """Return the sums so far, ``(rank, in)`` in fp64 by layer, unweighted."""
        return {name: total.clone() for name, total in self._sums.items()}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute fp32 products in full precision inside: no autocast, no TF32, no bf16.

    Damped solves square the condition of the inputs, so the 10 bits of TF32 would be pure noise.
    Autocast is switched off for this thread only. PyTorch has no switch for a single product, so
    the backend's setting is changed and restored; products on other threads are exact meanwhile.
    """
    # PyTorch before 2.9 has one setting for all backends, and later versions warn about it.
    backends = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    switches = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    before = [backend.fp32_precision for backend in switches]
    before_all = None if switches else torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        try:
            for backend in switches:
                backend.fp32_precision = "ieee"
            if before_all is not None:
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            for backend, precision in zip(switches, before, strict=True):
                backend.fp32_precision = precision
            if before_all is not None:
                torch.set_float32_matmul_precision(before_all)


def _raised(chunk: Tensor) -> Tensor:
    return chunk.to(torch.promote_types(chunk.dtype, torch.float32))


def _checked_rows(x: Tensor, width: int, label: str) -> Tensor:
    if x.shape[-1] != width:
        raise ValueError(
            f"the input of {label} must have {width} columns, got {tuple(x.shape)}; "
            "collect the statistics of one layer at a time"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"the input of {label} must be finite, got NaN or infinity; "
            "lower this LoRA's strength or run the model in fp32"
        )
    return x.detach().reshape(-1, width)
