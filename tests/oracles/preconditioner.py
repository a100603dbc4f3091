"""Scaled gradient descent and scaled AdamW on one product, in float64 and plain loops.

Written from the formulas of Zhang & Pilanci 2024, arXiv:2402.02347: each factor's gradient times
the inverse Gram of the other, then a plain step or AdamW (Loshchilov & Hutter 2019,
arXiv:1711.05101, algorithm 2). ``up`` is U, ``down`` is V, the product's gradient is G.
"""

from __future__ import annotations

import math

Matrix = list[list[float]]


def product(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(x * y for x, y in zip(row, col, strict=True)) for col in zip(*b, strict=True)]
            for row in a]  # fmt: skip


def transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def combined(a: Matrix, b: Matrix, factor: float) -> Matrix:
    return [[x + factor * y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def inverse(a: Matrix) -> Matrix:
    """Gauss and Jordan, with pivots."""
    size = len(a)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(a)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(rows[i][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


def damped(gram: Matrix, damping: float, relative: bool) -> Matrix:
    size = len(gram)
    amount = damping * sum(gram[i][i] for i in range(size)) / size if relative else damping
    return [[x + amount * (i == j) for j, x in enumerate(row)] for i, row in enumerate(gram)]


def preconditioned(
    up: Matrix, down: Matrix, gradient: Matrix, damping: float = 0.0, relative: bool = False
) -> tuple[Matrix, Matrix]:
    """The Riemannian gradients of ``up`` and ``down``, both from the values before the step."""
    grad_up = product(gradient, transposed(down))
    grad_down = product(transposed(up), gradient)
    of_down = inverse(damped(product(down, transposed(down)), damping, relative))
    of_up = inverse(damped(product(transposed(up), up), damping, relative))
    return product(grad_up, of_down), product(of_up, grad_down)


def gauss_seidel_down_step(up: Matrix, down: Matrix, gradient: Matrix, rate: float) -> Matrix:
    """The step of ``down`` where its Gram is that of ``up`` after its own step, as released once.

    The gradient of ``down`` is the one before the step.
    """
    step_up, _ = preconditioned(up, down, gradient)
    moved = combined(up, step_up, -rate)
    of_up = inverse(product(transposed(moved), moved))
    step = product(of_up, product(transposed(up), gradient))
    return [[-rate * x for x in row] for row in step]


class ScaledAdamW:
    """Both factors with their own moments; the gradient is a function of the product."""

    def __init__(
        self,
        up: Matrix,
        down: Matrix,
        rate: float,
        betas: tuple[float, float],
        tiny: float = 1e-8,
        decay: float = 0.0,
        damping: float = 0.0,
        relative: bool = False,
    ):
        self.values = {"up": up, "down": down}
        self.rate, self.betas, self.tiny, self.decay = rate, betas, tiny, decay
        self.damping, self.relative = damping, relative
        self.steps = 0
        self.first = {name: [[0.0] * len(r) for r in v] for name, v in self.values.items()}
        self.second = {name: [[0.0] * len(r) for r in v] for name, v in self.values.items()}

    def step(self, gradient: Matrix) -> None:
        up, down = self.values["up"], self.values["down"]
        new = preconditioned(up, down, gradient, self.damping, self.relative)
        self.steps += 1
        for name, scaled in zip(("up", "down"), new, strict=True):
            for i, row in enumerate(scaled):
                for j, g in enumerate(row):
                    self._entry(name, i, j, g)

    def _entry(self, name: str, i: int, j: int, g: float) -> None:
        first, second = self.betas
        m = self.first[name][i][j] = first * self.first[name][i][j] + (1 - first) * g
        v = self.second[name][i][j] = second * self.second[name][i][j] + (1 - second) * g * g
        m, v = m / (1 - first**self.steps), v / (1 - second**self.steps)
        kept = self.values[name][i][j] * (1 - self.rate * self.decay)
        self.values[name][i][j] = kept - self.rate * m / (math.sqrt(v) + self.tiny)
