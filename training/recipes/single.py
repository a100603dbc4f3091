"""Train an ordinary LoRA on captioned images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...lora_ops import Parametrization, Plain
from ..denoiser import Example
from ..gates import Gate
from ..randomness import coin, shuffled_round
from .rows import Row

LORA = "lora"  # name of the adapter and of its loss curve


@dataclass(frozen=True)
class Single:
    """Train one plain adapter on all examples, each once per shuffled round.

    Args:
        examples: The captioned images.
        batch_size: Number of rows per step, each with weight ``1 / batch_size``, so that a step's
            gradient is the mean over its samples.
        mirrored: The same images, mirrored; each sample then uses one of both at random.

    Raises:
        ValueError: There is no image, or the mirrored images are incomplete.
    """

    examples: Sequence[Example]
    batch_size: int = 1
    mirrored: Sequence[Example] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("training needs at least one image, got none; connect some")
        if self.mirrored and len(self.mirrored) != len(self.examples):
            raise ValueError(
                "every image needs its mirrored one, got "
                f"{len(self.mirrored)} for {len(self.examples)} images"
            )

    def adapters(self) -> Mapping[str, Parametrization]:
        """Return the one adapter, ``lora``."""
        return {LORA: Plain()}

    def lr_scales(self) -> Mapping[str, Mapping[str, float]]:
        """Return an empty mapping, because all parts have the same learning rate."""
        return {}

    def rows(self, step: int, seed: int) -> Sequence[Row]:
        """Return the next ``batch_size`` examples, each with its own noise."""
        rows = []
        for sample in range(self.batch_size):
            pick = shuffled_round(seed, len(self.examples), step * self.batch_size + sample)
            turned = self.mirrored and coin(seed, step, sample)
            example = (self.mirrored if turned else self.examples)[pick]
            rows.append(Row(LORA, example, {LORA: Gate()}, 1 / self.batch_size, sample))
        return rows
