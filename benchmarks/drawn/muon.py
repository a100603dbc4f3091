"""The optimiser Muon, with orthogonalised momentum, for the matrices of a transformer's blocks.

Five steps of the quintic Newton-Schulz iteration with the published coefficients orthogonalise the
momentum.

Reference: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(update: Tensor, steps: int = 5) -> Tensor:
    """Return approximately the semi-orthogonal matrix nearest to a matrix (rows, columns)."""
    a, b, c = COEFFICIENTS
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum 0.95 and decoupled weight decay.

    Args:
        params: Matrices (outputs, inputs), or convolutions (outputs, inputs, height, width), which
            are flattened to (outputs, rest). Fused matrices are split along the rows, see ``split``.
        lr: Learning rate: the spectral norm of an update, times sqrt(max(1, rows / columns)).
        weight_decay: Decoupled weight decay.
        split: Number of matrices that are stacked in a parameter, by the parameter's ``id``.
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
        """Update every matrix by its orthogonalised momentum."""
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
