"""Muon: momentum whose direction is made orthogonal, for the matrices of a transformer's blocks.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024); five steps of the
quintic Newton-Schulz iteration with the published coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(update: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest semi-orthogonal matrix to (rows, columns)."""
    a, b, c = COEFFICIENTS
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Momentum 0.95, Nesterov, weight decay apart from the update.

    Args:
        params: matrices (outputs, inputs), or convolutions (outputs, inputs, height, width), which
            are flattened to (outputs, rest). A fused matrix is split by ``split`` rows.
        lr: learning rate of the spectral norm, scaled by sqrt(max(1, rows / columns)).
        split: {id of a parameter: how many matrices are stacked in it}.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.01,
        split: dict[int, int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.split = split or {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix by its orthogonalised momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                update = parameter.grad.lerp(momentum, 0.95).flatten(1)
                parts = update.chunk(self.split.get(id(parameter), 1))
                scale = max(1.0, parts[0].shape[0] / parts[0].shape[1]) ** 0.5
                moved = torch.cat([orthogonalised(part) for part in parts]) * scale
                moved = moved.view(parameter.shape)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(moved, alpha=group["lr"])
