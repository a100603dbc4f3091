"""How an adapter spends its parameters: one file per idea, one line per idea here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..factors import LowRank
from .orthogonal_pair import OrthogonalRows
from .plain import Plain


class Parametrization(Protocol):
    """What every parametrisation can do with the named tensors (parts) of one layer."""

    starts_at_base: bool
    """Whether the change is zero before training."""

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the parts of a layer whose base weight has ``shape`` ``(out, in, ...)``."""
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
}
"""Every parametrisation by name; the contract tests run over this table."""
