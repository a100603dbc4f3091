"""Frozen configuration of a training run, validated on construction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .settings import TrainingSettings, require

PACKINGS = ("batched", "sequential")


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of one run, with all defaults resolved.

    Args:
        steps: Number of training steps; each ends in one update.
        rank: LoRA rank of every adapter.
        learning_rate: Highest learning rate of the schedule.
        seed: Seed of all random numbers.
        weight_decay: Decoupled weight decay.
        optimizer: One of ``OPTIMIZERS``.
        packing: ``batched`` runs all rows of a step in one forward pass if their shapes allow it
            and takes one optimizer step; ``sequential`` takes one forward pass and one optimizer
            step per row, in the order of the released Pair code.
        schedule: One of ``SCHEDULES``.
        warmup: Number of steps over which the learning rate rises from zero.
        passes: Minimum number of forward passes per step; their gradients are summed.
        rows_per_pass: Maximum number of rows in one forward pass; 0 is no limit.
        max_grad_norm: Maximum norm of the gradient, to which longer ones are clipped; 0 is off.
        timesteps: Distribution of the noise levels, one of ``TIMESTEPS`` without ``auto``.
        timestep_shift: Shift of the ``shifted`` distribution.
        min_snr_gamma: Gamma of the min-SNR weighting; 0 weights all noise levels equally.
        noise_offset: Fraction of the noise that is constant over a channel.
        caption_dropout: Fraction of rows that are trained without their caption.
        ema_decay: Decay of the moving average that is the result; 0 keeps the last step's values.
        outside_mask: Weight of a picture outside its mask, 0 to 1.
        damping: Damping of the preconditioned optimizers, relative to each Gram's mean eigenvalue.
    """

    steps: int
    rank: int
    learning_rate: float
    seed: int
    weight_decay: float = 1e-2
    optimizer: str = "AdamW"
    packing: Literal["batched", "sequential"] = "batched"
    schedule: str = "constant"
    warmup: int = 0
    passes: int = 1
    rows_per_pass: int = 0
    max_grad_norm: float = 0.0
    timesteps: str = "uniform"
    timestep_shift: float = 3.0
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    ema_decay: float = 0.0
    outside_mask: float = 0.0
    damping: float = 0.01

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}; raise steps")
        require(self.rank >= 1, f"rank must be at least 1, got {self.rank}; raise rank")
        require(
            0 < self.learning_rate < float("inf"),
            f"learning_rate must be a positive number, got {self.learning_rate}",
        )
        require(
            self.packing in PACKINGS,
            f"packing must be one of {', '.join(PACKINGS)}, got {self.packing!r}",
        )

    @classmethod
    def of(
        cls,
        settings: TrainingSettings,
        *,
        steps: int,
        rank: int,
        learning_rate: float,
        seed: int,
        weight_decay: float,
        timesteps: str = "uniform",
        packing: Literal["batched", "sequential"] = "batched",
    ) -> TrainingConfig:
        """Return the configuration for a user's settings and a family's resolved defaults.

        Args:
            settings: The user's settings.
            steps: Number of training steps.
            rank: LoRA rank of every adapter.
            learning_rate: Highest learning rate of the schedule.
            seed: Seed of all random numbers.
            weight_decay: The family's weight decay, for a negative one in the settings.
            timesteps: The family's distribution of noise levels, for ``auto`` in the settings.
            packing: ``batched`` or ``sequential``.
        """
        return cls(
            steps=steps,
            rank=rank,
            learning_rate=learning_rate,
            seed=seed,
            weight_decay=weight_decay if settings.weight_decay < 0 else settings.weight_decay,
            optimizer=settings.optimizer,
            packing=packing,
            schedule=settings.schedule,
            warmup=settings.warmup,
            passes=settings.accumulation,
            rows_per_pass=settings.rows_per_pass,
            max_grad_norm=settings.max_grad_norm,
            timesteps=timesteps if settings.timesteps == "auto" else settings.timesteps,
            timestep_shift=settings.timestep_shift,
            min_snr_gamma=settings.min_snr_gamma,
            noise_offset=settings.noise_offset,
            caption_dropout=settings.caption_dropout,
            ema_decay=settings.ema_decay,
            outside_mask=settings.outside_mask,
            damping=settings.damping,
        )

    @property
    def depends_on_total(self) -> bool:
        """Return whether a step depends on the total number of steps, as in a decaying schedule."""
        return self.schedule != "constant"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values for metadata and digests."""
        return asdict(self)
