"""The ordinary LoRA on captioned images: the honest baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...lora_ops import Parametrization, Plain
from ..denoiser import Example
from ..gates import Gate
from ..randomness import shuffled_round
from .rows import Row


@dataclass(frozen=True)
class Single:
    """Learn one plain adapter from all examples, each once per shuffled round.

    Args:
        examples: The captioned images.
        batch_size: Rows per step, each weighing ``1 / batch_size``: a step's gradient is the mean
            of its samples' gradients.
    """

    examples: Sequence[Example]
    batch_size: int = 1

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the one adapter, ``lora``."""
        return {"lora": Plain()}

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the next ``batch_size`` examples, each with its own noise."""
        first = step * self.batch_size
        picks = [
            shuffled_round(seed, len(self.examples), first + sample)
            for sample in range(self.batch_size)
        ]
        return [
            Row("lora", self.examples[pick], {"lora": Gate()}, 1 / self.batch_size, sample)
            for sample, pick in enumerate(picks)
        ]
