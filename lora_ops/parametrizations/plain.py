"""The ordinary LoRA: learn both factors, with ``up`` starting at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..factors import LowRank, kaiming_down

LORA_STARTS = ("uniform", "normal")


@dataclass(frozen=True)
class Plain:
    """Learn ``down`` and ``up`` without constraints, with a scale of 1.

    Args:
        lora_start: Distribution of the initial ``down``: ``uniform`` within ``1 / sqrt(in)``, or
            ``normal`` with a deviation of ``1 / rank``, as in the first code of Hu et al.

    Raises:
        ValueError: The start is not one of the two.

    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    lora_start: str = "uniform"

    def __post_init__(self) -> None:
        if self.lora_start not in LORA_STARTS:
            raise ValueError(
                f"lora_start must be one of {' and '.join(LORA_STARTS)}, got {self.lora_start!r}; choose one"
            )

    @property
    def starts_at_base(self) -> bool:
        """Return True: ``up`` is zero before training."""
        return True

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return a random ``down`` and a zero ``up``."""
        up = torch.zeros(shape[0], rank, *([1] * (len(shape) - 2)))
        if self.lora_start == "normal":
            down = torch.randn(rank, *shape[1:], generator=generator) / rank
        else:
            down = kaiming_down(shape, rank, generator)
        return {"down": down, "up": up}

    def trainable(self) -> frozenset[str]:
        """Return both parts."""
        return frozenset({"down", "up"})

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return the two parts unchanged, as factors."""
        return LowRank(parts["down"], parts["up"])
