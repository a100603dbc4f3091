"""Rows of a training batch, and the interface of recipes, which choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ...lora_ops import Parametrization
from ..denoiser import Example
from ..gates import RowGates
from ..words import Words


@dataclass(frozen=True)
class Row:
    """One row of a training batch.

    Args:
        name: Name of the row's loss curve.
        example: Example that is denoised.
        gates: Gates of the adapters that the row uses.
        weight: Weight of the row's mean squared error in the step's loss.
        sample: Number of the sample; rows of a step with equal numbers share noise and noise level.
        moves: Parts that the row's update changes; None for all. Rows with different parts take
            separate updates in order. Parts that an update does not change keep its gradient for
            their next update.
    """

    name: str
    example: Example
    gates: RowGates
    weight: float = 1.0
    sample: int = 0
    moves: frozenset[str] | None = None


class Recipe(Protocol):
    """The interface of a training method, which chooses adapters and rows for the loop."""

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the parametrisation of every adapter by name."""
        ...

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the rows of step ``step``, counted from 0; they depend only on the arguments."""
        ...

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return multipliers of the learning rate by adapter and part; 1 without an entry."""
        ...


@runtime_checkable
class WordRecipe(Protocol):
    """A recipe that also trains words of the prompts; the conds of its examples are callables."""

    def words(self) -> Words:
        """Return the initial embeddings of the words and their training settings."""
        ...
