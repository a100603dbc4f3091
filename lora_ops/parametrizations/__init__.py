"""Adapter parametrisations: one file for each, registered by name in ``PARAMETRIZATIONS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..factors import LowRank
from .orthogonal_pair import OrthogonalRows
from .partly_learnable import PartlyLearnable
from .plain import Plain


class Parametrization(Protocol):
    """The interface of a parametrisation: it works on the named tensors (parts) of one layer."""

    @property
    def starts_at_base(self) -> bool:
        """Return whether the change is zero before training."""
        ...

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return the parts of a layer whose base weight has ``shape`` ``(out, in, ...)``.

        Args:
            shape: Shape of the base weight.
            rank: Rank of the factors.
            generator: The run's generator, for parts that differ between runs.
            site: The layer's name, which seeds parts that are the same in all runs.
        """
        ...

    def trainable(self) -> frozenset[str]:
        """Return the names of the learnt parts; the others keep their initial values."""
        ...

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return the layer's ordinary low-rank factors."""
        ...


# All parametrisations by name; the contract tests run over this table.
PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    "plain": Plain,
    "orthogonal_rows": OrthogonalRows,
    "partly_learnable": PartlyLearnable,
}
