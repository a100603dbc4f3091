"""Regions the slow way: one cell, one token and one head at a time, in Python's own float64.

Written from Gu et al. 2023 (arXiv:2305.18292), section 3.3; nothing of the pack takes part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Pixels = tuple[int, int, int, int]
"""Top, left, bottom, right."""


def paper_cells(
    box: Pixels, height: int, width: int, grid: tuple[int, int]
) -> set[tuple[int, int]]:
    """Return the cells of a box of pixels as the paper finds them: the box shrinks to whole cells.

    The share of the picture is found first and multiplied then, in this order: rounding decides.
    """
    top, left, bottom, right = box
    rows, columns = grid
    first_row, last_row = math.ceil(top / height * rows), math.floor(bottom / height * rows)
    first, last = math.ceil(left / width * columns), math.floor(right / width * columns)
    found = set()
    for y in range(rows):
        for x in range(columns):
            if first_row <= y < last_row and first <= x < last:
                found.add((y, x))
    return found


def centre_cells(
    box: tuple[float, float, float, float], grid: tuple[int, int]
) -> set[tuple[int, int]]:
    """Return the cells whose centre lies in a box of shares, at least one on each axis."""
    top, left, bottom, right = box
    tie = 1e-10  # an edge upon a centre is one, however both were rounded

    def on_axis(low: float, high: float, count: int) -> list[int]:
        inside = [i for i in range(count) if low - tie <= (i + 0.5) / count < high - tie]
        return inside or [i for i in range(count) if i <= (low + high) / 2 * count < i + 1]

    rows, columns = on_axis(top, bottom, grid[0]), on_axis(left, right, grid[1])
    return {(y, x) for y in rows for x in columns}


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax attention of one query ``(heads * d,)`` over ``(text, heads * d)``."""
    size = len(q) // heads
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = [float(q[part] @ key[part]) / math.sqrt(size) for key in k]
        largest = max(scores)
        shares = [math.exp(score - largest) for score in scores]
        for share, value in zip(shares, v, strict=True):
            out[part] += share / sum(shares) * value[part]
    return out


def regional_attention(
    q: Tensor,
    base: tuple[Tensor, Tensor],
    regions: Sequence[tuple[Tensor, Tensor]],
    cells: Sequence[set[tuple[int, int]]],
    columns: int,
    heads: int,
) -> Tensor:
    """Return ``(batch, token, channel)``: a mean over covering regions, the base prompt elsewhere."""
    out = torch.zeros_like(q)
    for row in range(q.shape[0]):
        for token in range(q.shape[1]):
            cell = divmod(token, columns)
            covering = [region for region, own in zip(regions, cells, strict=True) if cell in own]
            for k, v in covering or [base]:
                part = attended(q[row, token], k[row], v[row], heads)
                out[row, token] += part / max(1, len(covering))
    return out


def overwritten(
    cells: Sequence[set[tuple[int, int]]],
    values: Sequence[float],
    outside: float,
    grid: tuple[int, int],
) -> list[list[float]]:
    """Return a map of strengths: later boxes overwrite earlier ones."""
    found = [[outside] * grid[1] for _ in range(grid[0])]
    for own, value in zip(cells, values, strict=True):
        for y, x in own:
            found[y][x] = value
    return found
