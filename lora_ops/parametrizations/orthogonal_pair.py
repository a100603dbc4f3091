"""Pair Customization: frozen ``down`` rows of one orthonormal basis, learnt ``up``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..bases import disjoint_bases
from ..factors import LowRank

RELEASED_BASIS_SEED = 123846  # seed of the authors' SDXL bases; it reproduces their files


@dataclass(frozen=True)
class OrthogonalRows:
    """Freeze ``down`` at the content or the style rows of a basis and learn ``up`` from zero.

    Content and style rows are orthogonal by construction, so the two adapters read disjoint
    directions of every layer's input. The basis depends only on (seed, width, rank).

    Args:
        role: Rows of the basis to use: the first ``rank`` for content, the next ``rank`` for style.
        basis_seed: Seed of the basis.

    Reference: Jones et al. 2024, arXiv:2405.01536, section 3.2.
    """

    role: Literal["content", "style"] = "style"
    basis_seed: int = RELEASED_BASIS_SEED
    _rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def starts_at_base(self) -> bool:
        """Return True: ``up`` is zero before training."""
        return True

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return the basis rows as ``down``, shared by layers of equal width, and a zero ``up``.

        Raises:
            ValueError: Twice the rank exceeds the width, or the layer is not linear.
        """
        if len(shape) != 2:
            raise ValueError(f"orthogonal rows need a linear layer, got a weight of shape {shape}")
        width = shape[1]
        if 2 * rank > width:
            raise ValueError(
                "content and style rows must fit the narrowest layer together, "
                f"got 2 x rank {rank} for width {width}; set rank to {width // 2} or less"
            )
        if (width, rank) not in self._rows:
            self._rows[width, rank] = disjoint_bases(width, rank, rank, self.basis_seed)
        content, style = self._rows[width, rank]
        down = content if self.role == "content" else style
        return {"down": down, "up": torch.zeros(shape[0], rank)}

    def trainable(self) -> frozenset[str]:
        """Return ``up`` only; the rows of ``down`` are frozen."""
        return frozenset({"up"})

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return the two parts unchanged, as factors."""
        return LowRank(parts["down"], parts["up"])
