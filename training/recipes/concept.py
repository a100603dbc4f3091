"""ED-LoRA: train a concept as two words and a small LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...lora_ops import Parametrization, Plain
from ..denoiser import Example
from ..gates import Gate
from ..randomness import coin, shuffled_round, uniform
from ..words import Words
from .rows import Row

CONCEPT = "concept"  # name of the adapter and of its loss curve


@dataclass(frozen=True)
class EdLora:
    """Train a concept's words and one adapter over the sites of denoiser and text encoder.

    Each sample uses the next picture of a shuffled round in one of its wordings. The sites say at
    which learning rate they are learnt.

    Args:
        examples: Every picture in all its wordings, with callables as conds.
        learnt: The words to train.
        batch_size: Number of rows per step, each with weight ``1 / batch_size``.
        mirrored: The same pictures, mirrored; each sample then uses one of both at random.
        adapter: Parametrisation of the adapter.
        dropped: Sites at which a step may leave out the adapter.
        text_dropout: Share of the steps in which each of them does, drawn independently.

    Raises:
        ValueError: There is no picture, a picture has no wording or no mirrored one, or the dropout
            is not in [0, 1).

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2.
    """

    examples: Sequence[Sequence[Example]]
    learnt: Words
    batch_size: int = 1
    mirrored: Sequence[Sequence[Example]] = ()
    adapter: Parametrization = field(default_factory=Plain)
    dropped: Sequence[str] = ()
    text_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.examples or not all(self.examples):
            raise ValueError(
                "a concept needs at least one picture, each with a caption, got "
                f"{sum(bool(wordings) for wordings in self.examples)} of {len(self.examples)}; "
                "connect some"
            )
        if self.mirrored and len(self.mirrored) != len(self.examples):
            raise ValueError(
                "every picture needs its mirrored one, got "
                f"{len(self.mirrored)} for {len(self.examples)} pictures"
            )
        if not 0 <= self.text_dropout < 1:
            raise ValueError(
                f"text_dropout must be at least 0 and below 1, got {self.text_dropout:g}; try 0.2"
            )

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the one adapter, ``concept``."""
        return {CONCEPT: self.adapter}

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return an empty mapping, because learning rates depend on the site and the word here."""
        return {}

    def words(self) -> Words:
        """Return the concept's words."""
        return self.learnt

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the next ``batch_size`` pictures, each in one wording and with its own noise."""
        rows = []
        gates = {CONCEPT: Gate(off=self._off(step, seed))}
        for sample in range(self.batch_size):
            pick = shuffled_round(seed, len(self.examples), step * self.batch_size + sample)
            turned = self.mirrored and coin(seed, step, sample)
            wordings = (self.mirrored if turned else self.examples)[pick]
            wording = int(uniform(seed, "wording", step, sample) * len(wordings))
            rows.append(Row(CONCEPT, wordings[wording], gates, 1 / self.batch_size, sample))
        return rows

    def _off(self, step: int, seed: int) -> frozenset[str]:
        """Return the sites at which this step leaves out the adapter."""
        if not self.text_dropout:
            return frozenset()
        return frozenset(
            site
            for site in self.dropped
            if uniform(seed, "dropout", step, site) < self.text_dropout
        )
