"""Rows: what one training step learns from, and what every recipe decides."""

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
        name: Of its loss curve.
        example: What is denoised.
        gates: The adapters it uses.
        weight: Of its mean squared error in the step's loss.
        sample: Rows of a step with equal ``sample`` share noise and noise level.
        moves: Parts that the row's update moves, all where ``None``. Rows that move different
            parts take one update after the other; the parts that an update leaves where they are
            keep its gradient for the next that moves them.
    """

    name: str
    example: Example
    gates: RowGates
    weight: float = 1.0
    sample: int = 0
    moves: frozenset[str] | None = None


class Recipe(Protocol):
    """What a training method decides; the loop does the rest."""

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the parametrisation of every adapter by name."""
        ...

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the rows of step ``step``, counted from 0; a function of its arguments alone."""
        ...

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return multipliers of the learning rate by adapter and part; 1 where none is named."""
        ...


@runtime_checkable
class LearnsWords(Protocol):
    """A recipe that learns words of the prompts too; their captions' conds are callables."""

    def words(self) -> Words:
        """Return where their embeddings start and how they are learnt."""
        ...
