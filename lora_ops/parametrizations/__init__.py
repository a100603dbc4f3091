"""How an adapter spends its parameters: one file per idea, one line per idea here."""

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
    """What every parametrisation can do with the named tensors (parts) of one layer."""

    @property
    def starts_at_base(self) -> bool:
        """Return whether the change is zero before training."""
        ...

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return the parts of a layer whose base weight has ``shape`` ``(out, in, ...)``.

        Args:
            shape: Of the base weight.
            rank: Of the factors.
            generator: Of the run, for what each run draws anew.
            site: The layer's name, for what must not depend on the run.
        """
        ...

    def trainable(self) -> frozenset[str]:
        """Return the names of the parts that are learnt; the others stay as drawn."""
        ...

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return the layer's ordinary low-rank factors."""
        ...


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    "plain": Plain,
    "orthogonal_rows": OrthogonalRows,
    "partly_learnable": PartlyLearnable,
}
"""Every parametrisation by name; the contract tests run over this table."""
