"""Sample a layer's input rows, to measure the error of a change on them."""

from __future__ import annotations

import torch
from torch import Tensor


class RowSample:
    """Keeps a random sample of rows, spread evenly over all calls.

    Args:
        limit: Maximum number of rows kept from all calls together.
        calls: Number of calls of ``add`` that will follow; with more calls than rows to keep, some
            calls contribute no row.
        generator: CPU generator that selects the rows.
    """

    def __init__(self, limit: int, calls: int, generator: torch.Generator):
        self._limit, self._calls, self._seen = limit, max(1, calls), 0
        self._generator = generator
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Keep some rows of ``(row, in)``, or all if they are few."""
        before = self._seen * self._limit // self._calls
        self._seen += 1
        count = self._seen * self._limit // self._calls - before
        if count == 0:
            return
        if len(rows) > count:
            chosen = torch.randperm(len(rows), generator=self._generator)[:count]
            rows = rows[chosen.to(rows.device)]
        self._kept.append(rows.detach().to("cpu", torch.float32, copy=True))

    def total(self) -> Tensor:
        """Return the rows kept so far, ``(row, in)`` in fp32 on the CPU."""
        return torch.cat(self._kept) if self._kept else torch.zeros(0, 0)
