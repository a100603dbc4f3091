"""Pair Customization's training of one linear layer, in float64 and plain loops.

Written from the paper's losses (Jones et al. 2024, arXiv:2405.01536, section 3.2) and the AdamW
update (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), without autograd and without the
pack's code. The layer predicts eps from ``x / sqrt(sigma^2 + 1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Vector = list[float]
Matrix = list[list[float]]


@dataclass
class AdamW:
    """One matrix with its own moments and its own step count."""

    value: Matrix
    learning_rate: float
    weight_decay: float
    steps: int = 0
    first: Matrix = field(default_factory=list)
    second: Matrix = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = [[0.0] * len(row) for row in self.value]
        self.second = [[0.0] * len(row) for row in self.value]

    def update(self, gradient: Matrix) -> None:
        self.steps += 1
        for i, row in enumerate(gradient):
            for j, g in enumerate(row):
                self.first[i][j] = 0.9 * self.first[i][j] + 0.1 * g
                self.second[i][j] = 0.999 * self.second[i][j] + 0.001 * g * g
                m = self.first[i][j] / (1 - 0.9**self.steps)
                v = self.second[i][j] / (1 - 0.999**self.steps)
                kept = self.value[i][j] * (1 - self.learning_rate * self.weight_decay)
                self.value[i][j] = kept - self.learning_rate * m / (math.sqrt(v) + 1e-8)


@dataclass
class PairTrainer:
    """Content and style of one pair on one layer."""

    base: Matrix
    content_down: Matrix
    style_down: Matrix
    before: Vector
    after: Vector
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        rank = len(self.content_down)
        self.content = AdamW(self._zeros(rank), self.learning_rate, self.weight_decay)
        self.style = AdamW(self._zeros(rank), self.learning_rate, self.weight_decay)

    def sequential_step(
        self, noise: Vector, sigma: float, with_style: bool
    ) -> tuple[float, float | None]:
        """The released order: the style pass sees the content that was just updated."""
        content_loss, gradient, _ = self._loss(self.before, noise, sigma, styled=False)
        self.content.update(gradient)
        if not with_style:
            return content_loss, None
        style_loss, _, gradient = self._loss(self.after, noise, sigma, styled=True)
        self.style.update(gradient)
        return content_loss, style_loss

    def batched_step(
        self, noise: Vector, sigma: float, with_style: bool
    ) -> tuple[float, float | None]:
        """Both losses at the same parameters, then both updates."""
        content_loss, content_gradient, _ = self._loss(self.before, noise, sigma, styled=False)
        style_loss = None
        if with_style:
            style_loss, _, style_gradient = self._loss(self.after, noise, sigma, styled=True)
            self.style.update(style_gradient)
        self.content.update(content_gradient)
        return content_loss, style_loss

    def _zeros(self, rank: int) -> Matrix:
        return [[0.0] * rank for _ in self.base]

    def _loss(
        self, latent: Vector, noise: Vector, sigma: float, styled: bool
    ) -> tuple[float, Matrix, Matrix]:
        """The mean squared error of eps, and its gradients by both ``up`` matrices."""
        x = [(z + sigma * e) / math.sqrt(sigma**2 + 1) for z, e in zip(latent, noise, strict=True)]
        content_hidden = _times(self.content_down, x)
        style_hidden = _times(self.style_down, x)
        output = _times(self.base, x)
        for i, change in enumerate(_times(self.content.value, content_hidden)):
            output[i] += change
        if styled:
            for i, change in enumerate(_times(self.style.value, style_hidden)):
                output[i] += change
        errors = [o - e for o, e in zip(output, noise, strict=True)]
        loss = sum(error**2 for error in errors) / len(errors)
        slope = [2 * error / len(errors) for error in errors]
        content_gradient = [[s * h for h in content_hidden] for s in slope]
        style_gradient = [[s * h for h in style_hidden] for s in slope]
        return loss, content_gradient, style_gradient


def _times(matrix: Matrix, vector: Vector) -> Vector:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]
