"""Statistics of a layer's inputs, streamed: all that gradient fusion needs of the activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SPAN_TOLERANCE = 1e-6
"""How far a unit row may lie outside a span that counts as holding it."""

CHUNK_ROWS = 4096
"""Rows of one fp32 product. Sums between chunks are fp64, which is 10 x nearer than all-fp32."""

EXACT_TOLERANCE = 1e-12
"""Eigenvalues below this share of the largest count as zero, where all products were fp64."""


@dataclass(frozen=True)
class Gram:
    """The statistics ``X^T X`` of one input site, which the layers that share it have in common.

    Grams of the same site add up over chunks, prompts and concepts, and can be taken away again
    (``GramStream.merge``).

    Args:
        matrix: ``(in, in)`` in fp64, or ``(span, span)`` for inputs seen within a span.
        rows: How many input rows were counted, whatever their weight.
        energy: Sum of the squares of the whole input: the trace, unless it is seen within a span.
        width: Of the whole input.
        rounded: Whether any of the products was computed in fp32.
        span: ``(span, in)`` orthonormal rows in fp64 within whose span the inputs are seen; None
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
        """Return the energy of one direction of the input, the unit of relative damping."""
        return self.energy / self.width

    @property
    def rounding(self) -> float:
        """Return the share of the largest eigenvalue that rounding moves one by, as a rule."""
        return torch.finfo(torch.float32).eps if self.rounded else EXACT_TOLERANCE

    @property
    def zero_below(self) -> float:
        """Return the share of the largest eigenvalue below which one may be rounding alone."""
        return len(self.matrix) * self.rounding if self.rounded else self.rounding

    def within(self, span: Tensor | None) -> Gram:
        """Return the statistics of the same inputs, seen within a narrower span.

        Args:
            span: ``(span, in)`` orthonormal rows; None for the whole input.

        Raises:
            ValueError: They were seen within a span that doesn't hold it.
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
    """Return whether a span holds all rows of another, both ``(span, in)``; None holds any."""
    if outer is None or inner is None:
        return outer is None
    outside = inner - (inner @ outer.mT) @ outer
    return bool((outside.norm(dim=1) < SPAN_TOLERANCE).all())


class GramStream:
    """Adds input rows up into a ``Gram``; a forward hook calls ``add`` and keeps nothing.

    Args:
        width: Of the layer's input.
        span: ``(span, in)`` orthonormal rows. Given, the inputs are seen within their span alone,
            and the statistics are ``(span, span)``: for sites too wide for ``(in, in)``.
        device: Where the sums live. It must know fp64.
        start: What the sums begin from, within the same span; it is taken over, never copied.
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
            label: What the input is called in an error: the layer, and the prompt.
            weight: Of these rows in the sums; a negative one takes them away again.

        Raises:
            ValueError: The width differs, or a value is not finite; nothing is counted then.
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
        """Add statistics of the same site that were collected apart.

        Args:
            other: Within the same span or a wider one.
            weight: Of them in the sums; a negative one takes them away again.
        """
        other = other.within(self._span)
        self._matrix.add_(other.matrix.to(self._matrix), alpha=weight)
        self._rows += other.rows if weight >= 0 else -other.rows
        self._energy += weight * other.energy
        self._rounded = self._rounded or other.rounded

    def total(self) -> Gram:
        """Return the sums so far; later rows don't change what was returned."""
        now = self.live()
        return replace(now, matrix=now.matrix.clone())

    def live(self) -> Gram:
        """Return the sums so far without a copy: later rows change its matrix."""
        energy = self._energy if self._span is not None else float(self._matrix.trace())
        return Gram(self._matrix, self._rows, energy, self._width, self._rounded, self._span)


class ProjectedStream:
    """Adds up ``down @ x^T x`` for several layers of a site without the ``(in, in)`` of a concept.

    Args:
        downs: ``(rank, in)`` each, by the layer's name.
        width: Of the site's input.
        device: Where the sums live. It must know fp64.
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
        """Count the rows of ``x``; the arguments and errors of ``GramStream.add``."""
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
    """Compute fp32 products as fp32 inside: no autocast, no TF32, no bf16.

    Damped solves square the condition of the inputs, so the 10 bits of TF32 would be all noise.
    Autocast is switched off for this thread alone. PyTorch has no switch for one product, so the
    backend's setting is changed and put back: a product on another thread meanwhile is exact too.
    """
    # PyTorch before 2.9 has one setting for all backends, and later ones complain about it.
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
