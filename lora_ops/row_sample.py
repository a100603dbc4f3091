"""A few of a layer's input rows, kept to tell how well a change serves them."""

from __future__ import annotations

import torch
from torch import Tensor


class RowSample:
    """Keeps as many rows of every call, drawn evenly, about ``limit`` of them in all.

    Args:
        limit: Rows to keep of all calls together.
        calls: How many calls of ``add`` there will be; each gives its part, one row at least.
        generator: On the CPU; decides which rows are kept.
    """

    def __init__(self, limit: int, calls: int, generator: torch.Generator):
        self._share = max(1, limit // max(1, calls))
        self._generator = generator
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Keep some rows of ``(row, in)``, all of them where they are few."""
        if len(rows) > self._share:
            chosen = torch.randperm(len(rows), generator=self._generator)[: self._share]
            rows = rows[chosen.to(rows.device)]
        self._kept.append(rows.detach().to("cpu", torch.float32, copy=True))

    def total(self) -> Tensor:
        """Return the rows kept so far, ``(row, in)`` in fp32 on the CPU."""
        return torch.cat(self._kept) if self._kept else torch.zeros(0, 0)
