"""Frozen settings of a training run, validated where they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .settings import TrainingSettings, require

PACKINGS = ("batched", "sequential")


@dataclass(frozen=True)
class TrainingConfig:
    """One run, every default resolved.

    Args:
        steps: Training steps; each ends in one update.
        rank: Of every adapter.
        learning_rate: Of the optimiser, at its highest.
        seed: Of every draw.
        weight_decay: Decoupled decay.
        optimizer: One of ``OPTIMIZERS``.
        packing: ``batched`` runs all rows of a step in one forward where shapes allow and takes
            one optimiser step; ``sequential`` takes one forward and one optimiser step per row,
            the order of the released Pair code.
        schedule: One of ``SCHEDULES``.
        warmup: Steps over which the rate rises from nothing.
        passes: Forwards that a step's rows are spread over at least; their gradients add up.
        rows_per_pass: Rows in one forward at most; 0 is no limit.
        max_grad_norm: Longer gradients are shortened to it; 0 leaves them.
        timesteps: How noise levels are drawn, one of ``TIMESTEPS`` without ``auto``.
        timestep_shift: Of ``shifted``.
        min_snr_gamma: Of the min-SNR weighting; 0 weighs all noise levels alike.
        noise_offset: Share of noise that is constant over a channel.
        caption_dropout: Share of rows that are trained without their caption.
        ema_decay: Of the average that is kept as the result; 0 keeps the last step's.
        outside_mask: What a picture still counts outside its mask, 0 to 1.
        damping: Of the preconditioned optimisers, in each Gram's mean eigenvalue.
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
        """Return the run of these settings; the arguments are what a family's defaults decide.

        Args:
            settings: Of the user; a negative weight decay and automatic timesteps are resolved.
            steps: As above, and so are the next three.
            rank: As above.
            learning_rate: As above.
            seed: As above.
            weight_decay: Where the settings leave it to the family.
            timesteps: Where the settings leave it to the family.
            packing: As above.
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
        """Return whether step n of this run would be another if it had more steps."""
        return self.schedule != "constant"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for metadata and digests."""
        return asdict(self)
