"""The ordinary LoRA: both factors learnt, ``up`` starts at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..factors import LowRank, kaiming_down


@dataclass(frozen=True)
class Plain:
    """Learn ``down`` and ``up`` freely, with a scale of 1.

    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    starts_at_base: ClassVar[bool] = True

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return a uniform random ``down`` and a zero ``up``."""
        up = torch.zeros(shape[0], rank, *([1] * (len(shape) - 2)))
        return {"down": kaiming_down(shape, rank, generator), "up": up}

    def trainable(self) -> frozenset[str]:
        """Return both parts."""
        return frozenset({"down", "up"})

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return the parts as they are."""
        return LowRank(parts["down"], parts["up"])
