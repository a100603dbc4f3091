"""LoRA-RITE on one product, in float64, step by step as the paper writes it.

Written from Yen et al. 2024, arXiv:2410.20625, algorithm 1, with decaying moments and Adam's bias
correction. ``up`` is U (out, rank), ``down`` is V (rank, in). The bases come from a QR
decomposition; the result doesn't depend on that choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Side:
    """The moments of one factor, in a basis of the other one's span."""

    moment: Tensor
    second: Tensor
    escaped: float
    basis: Tensor


class LoraRite:
    """Both factors of one product; the gradient is that of the product."""

    def __init__(self, up: Tensor, down: Tensor, rate: float, betas: tuple[float, float]):
        self.up, self.down, self.rate, self.betas = up, down, rate, betas
        self.steps = 0
        self.sides: dict[str, Side] = {}

    def step(self, gradient: Tensor) -> None:
        step_up = self._direction("up", gradient, self.down.T)
        step_down = self._direction("down", gradient.T, self.up)
        self.up = self.up - self.rate * step_up
        self.down = self.down - self.rate * step_down.T
        self.steps += 1

    def _direction(self, name: str, gradient: Tensor, other: Tensor) -> Tensor:
        """``other`` is (width, rank), the factor's gradient is ``gradient @ other``."""
        basis, triangle = torch.linalg.qr(other)
        bare = gradient @ other @ torch.linalg.inv(triangle)
        first, second = (
            beta * (1 - beta**self.steps) / (1 - beta ** (self.steps + 1)) for beta in self.betas
        )
        square = bare.T @ bare / len(bare)
        if name not in self.sides:
            rank = len(triangle)
            nothing = torch.zeros(rank, rank, dtype=other.dtype)
            self.sides[name] = Side(torch.zeros_like(bare), nothing, 0.0, basis)
        old = self.sides[name]
        turn = basis.T @ old.basis
        carried = turn @ old.second @ turn.T
        fell = torch.linalg.eigvalsh(old.second) - torch.linalg.eigvalsh(carried)
        lost = max(0.0, min(fell.max().item(), (old.second - carried).trace().item()))
        escaped = second * (old.escaped + lost)
        new_second = second * carried + (1 - second) * square
        values, vectors = torch.linalg.eigh((new_second + new_second.T) / 2)
        root = vectors @ torch.diag(1 / ((values + escaped).sqrt() + 1e-8)) @ vectors.T
        moment = first * old.moment @ turn.T + (1 - first) * bare @ root
        self.sides[name] = Side(moment, new_second, escaped, basis)
        return moment @ torch.linalg.inv(triangle).T
