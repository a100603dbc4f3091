"""A few of a layer's input rows, kept to tell how well a change serves them."""

from __future__ import annotations

import torch
from torch import Tensor


class RowSample:
    """Keeps rows of every call, drawn evenly, ``limit`` of them in all at most.

    Args:
        limit: Rows to keep of all calls together.
        calls: How many calls of ``add`` there will be; each gives its part, which is none of some
            where there are more of them than rows to keep.
        generator: On the CPU; decides which rows are kept.
    """

    def __init__(self, limit: int, calls: int, generator: torch.Generator):
        self._limit, self._calls, self._seen = limit, max(1, calls), 0
        self._generator = generator
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Keep some rows of ``(row, in)``, all of them where they are few."""
        before = self._seen * self._limit // self._calls
        self._seen += 1
        share = self._seen * self._limit // self._calls - before
        if share == 0:
            return
        if len(rows) > share:
            chosen = torch.randperm(len(rows), generator=self._generator)[:share]
            rows = rows[chosen.to(rows.device)]
        self._kept.append(rows.detach().to("cpu", torch.float32, copy=True))

    def total(self) -> Tensor:
        """Return the rows kept so far, ``(row, in)`` in fp32 on the CPU."""
        return torch.cat(self._kept) if self._kept else torch.zeros(0, 0)
