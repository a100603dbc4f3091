"""Break-for-Make's four blocks and its gradient schedules, in float64 and plain loops.

Written from the paper's figure of the projections (Xu et al. 2024, arXiv:2403.19456) and from what
the released training loops compute.
"""

from __future__ import annotations

Matrix = list[list[float]]


def blocks(a: Matrix, b: Matrix, c: Matrix, d: Matrix) -> Matrix:
    """[[A C, A D], [B C, B D]] of the up projection [A; B] and the down projection [C, D]."""

    def entry(row: list[float], right: Matrix, column: int) -> float:
        return sum(value * right[r][column] for r, value in enumerate(row))

    return [
        [entry(row, right, j) for right in (c, d) for j in range(len(right[0]))] for row in (*a, *b)
    ]


def isolated(steps: int, main: dict[str, float], aux: dict[str, float]) -> dict[str, list[float]]:
    """The owned D learns from the main loss alone, its partner B from the auxiliary loss alone."""
    return {"down": [main["down"]] * steps, "up": [aux["up"]] * steps}


def leaky(steps: int, main: dict[str, float], aux: dict[str, float]) -> dict[str, list[float]]:
    """As released: each optimiser clears its own gradients alone, so both losses reach both.

    The main backward, D's step and clearing; the auxiliary backward, B's step and clearing.
    """
    held = {"down": 0.0, "up": 0.0}
    seen: dict[str, list[float]] = {"down": [], "up": []}
    for _ in range(steps):
        for part, losses in (("down", main), ("up", aux)):
            for name in held:
                held[name] += losses[name]
            seen[part].append(held[part])
            held[part] = 0.0
    return seen
