"""Frozen settings of a training run, validated where they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

PRECISIONS = ("auto", "fp32", "bf16")
FLIPS = ("never", "always", "random")
OPTIMIZERS = ("AdamW", "Adafactor", "SGD")
TARGETS = ("attention", "attention and feed-forward", "all linear")
PACKINGS = ("batched", "sequential")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class TrainingSettings:
    """What all trainers share.

    Args:
        precision: Of the base's computation. ``auto`` keeps the one it is loaded in, except that
            fp16, whose small gradients vanish, becomes bf16 where the device has it, else fp32.
            Adapters are always learnt in fp32.
        resolution: Shorter side in pixels that images are resized to; 0 is the family's default.
        flip: Mirror every image never, always (as the released Pair code does) or at random.
        optimizer: One of ``OPTIMIZERS``.
        weight_decay: Decoupled decay; negative is the family's default.
        targets: Which layers get an adapter, one of ``TARGETS``.
        batch_size: Samples per step; for pairs, the noise levels that a step takes.
    """

    precision: str = "auto"
    resolution: int = 0
    flip: str = "never"
    optimizer: str = "AdamW"
    weight_decay: float = -1.0
    targets: str = "attention"
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", PRECISIONS),
            ("flip", FLIPS),
            ("optimizer", OPTIMIZERS),
            ("targets", TARGETS),
        ):
            value = getattr(self, name)
            _require(
                value in allowed,
                f"{name} must be one of {', '.join(allowed)}, got {value!r}; choose one of them",
            )
        _require(
            self.resolution == 0 or self.resolution >= 16,
            f"resolution must be 0 (default) or at least 16 pixels, got {self.resolution}",
        )
        _require(
            self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}; raise it"
        )


@dataclass(frozen=True)
class TrainingConfig:
    """One run, every default resolved.

    Args:
        steps: Training steps.
        rank: Of every adapter.
        learning_rate: Of the optimiser, constant.
        seed: Of every draw.
        weight_decay: Decoupled decay.
        optimizer: One of ``OPTIMIZERS``.
        packing: ``batched`` runs all rows of a step in one forward where shapes allow and takes
            one optimiser step; ``sequential`` takes one forward and one optimiser step per row,
            the order of the released Pair code.
    """

    steps: int
    rank: int
    learning_rate: float
    seed: int
    weight_decay: float = 1e-2
    optimizer: str = "AdamW"
    packing: Literal["batched", "sequential"] = "batched"

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps must be at least 1, got {self.steps}; raise steps")
        _require(self.rank >= 1, f"rank must be at least 1, got {self.rank}; raise rank")
        _require(
            0 < self.learning_rate < float("inf"),
            f"learning_rate must be a positive number, got {self.learning_rate}",
        )
        _require(
            self.packing in PACKINGS,
            f"packing must be one of {', '.join(PACKINGS)}, got {self.packing!r}",
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values for metadata and digests."""
        return asdict(self)
