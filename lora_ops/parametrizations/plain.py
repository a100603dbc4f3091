"""The ordinary LoRA: both factors learnt, ``up`` starts at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..factors import LowRank, kaiming_down

LORA_STARTS = ("uniform", "normal")


@dataclass(frozen=True)
class Plain:
    """Learn ``down`` and ``up`` freely, with a scale of 1.

    Args:
        lora_start: How ``down`` is drawn: ``uniform`` within ``1 / sqrt(in)``, or ``normal`` with a
            spread of ``1 / rank``, as Hu et al.'s first released code has it.

    Raises:
        ValueError: The start is none of the two.

    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    lora_start: str = "uniform"
    starts_at_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lora_start not in LORA_STARTS:
            raise ValueError(
                f"lora_start must be one of {' and '.join(LORA_STARTS)}, got {self.lora_start!r}; choose one"
            )

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
        """Return the parts as they are."""
        return LowRank(parts["down"], parts["up"])
