"""User settings that all trainers share, validated on construction."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

PRECISIONS = ("auto", "fp32", "bf16")
FLIPS = ("never", "always", "random")
OPTIMIZERS = ("AdamW", "Adafactor", "SGD", "Scaled SGD", "Scaled AdamW", "LoRA-RITE")
TARGETS = ("attention", "attention and feed-forward", "all linear")
SCHEDULES = ("constant", "linear", "cosine")
TIMESTEPS = ("auto", "uniform", "logit-normal", "shifted")
MEMORY = ("as set", "8 GB", "12 GB", "24 GB")

# These settings affect memory, time or previews, but not the result beyond rounding: a run that ran
# out of memory can continue with other values of them.
_WITHOUT_EFFECT = frozenset(
    {
        "memory",
        "checkpointing",
        "offload",
        "rows_per_pass",
        "save_every_steps",
        "save_every_minutes",
        "keep_checkpoints",
        "preview_every",
        "preview_prompt",
        "preview_seed",
    }
)


def require(holds: bool, message: str) -> None:
    """Raise a ``ValueError`` with ``message`` unless ``holds``."""
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that all trainers share; new fields go to the end, with a default that is neutral.

    Args:
        precision: Precision of the base's computation. ``auto`` keeps the loaded one, except that
            fp16, in which small gradients vanish, becomes bf16 if the device supports it, else
            fp32. Adapters are always trained in fp32.
        resolution: Shorter side in pixels that images are resized to; 0 is the family's default.
        flip: Mirror every image never, always (as the released Pair code does) or at random.
        optimizer: One of ``OPTIMIZERS``.
        weight_decay: Decoupled weight decay; negative is the family's default.
        targets: Layers that get an adapter, one of ``TARGETS``.
        batch_size: Samples per forward pass; for pairs, the number of noise levels per step.
        schedule: Learning rate schedule, one of ``SCHEDULES``.
        warmup: Number of steps over which the learning rate rises.
        accumulation: Number of forward passes of ``batch_size`` samples per update.
        max_grad_norm: Maximum norm of the gradient, to which longer ones are clipped; 0 is off.
        timesteps: Distribution of noise levels; ``auto`` is the method's or family's default.
        timestep_shift: Shift of the ``shifted`` distribution; above 1 favours noisy levels.
        min_snr_gamma: Gamma of the min-SNR weighting; 0 is off, 5 is the paper's.
        noise_offset: Fraction of the noise that is constant over a channel; 0 is off.
        caption_dropout: Fraction of rows that are trained without their caption.
        ema_decay: Decay of the moving average that becomes the result; 0 is off.
        outside_mask: Weight of a picture outside its mask, 0 to 1.
        target_pattern: Layers by name instead of ``targets``: glob patterns, separated by spaces or
            commas; a pattern with ``-`` in front excludes layers.
        memory: Preset for a card, one of ``MEMORY``; it sets the next three.
        checkpointing: Recompute each block in backward: less memory, a third slower.
        offload: Keep the base's weights in main memory, on the device only while in use; implies
            checkpointing, without which backward would hold every weight on the device.
        rows_per_pass: Maximum number of rows in one forward pass; 0 is no limit.
        save_every_steps: Steps between checkpoints; 0 uses only minutes.
        save_every_minutes: Minutes between checkpoints; 0 uses only steps.
        keep_checkpoints: Number of checkpoints to keep.
        preview_every: Steps between preview pictures; 0 is off.
        preview_prompt: Prompt of the previews; empty is the trainer's own prompt.
        preview_seed: Seed of the previews' noise.
        damping: Damping of the preconditioned optimizers, relative to each Gram's mean eigenvalue;
            0 is off.
        text_encoder_rate: Learning rate of an adapter in CLIP-L and CLIP-G; 0 trains none.

    Raises:
        ValueError: A value is outside its range; the message names field and value.
    """

    precision: str = "auto"
    resolution: int = 0
    flip: str = "never"
    optimizer: str = "AdamW"
    weight_decay: float = -1.0
    targets: str = "attention"
    batch_size: int = 1
    schedule: str = "constant"
    warmup: int = 0
    accumulation: int = 1
    max_grad_norm: float = 0.0
    timesteps: str = "auto"
    timestep_shift: float = 3.0
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    ema_decay: float = 0.0
    outside_mask: float = 0.0
    target_pattern: str = ""
    memory: str = "as set"
    checkpointing: bool = False
    offload: bool = False
    rows_per_pass: int = 0
    save_every_steps: int = 0
    save_every_minutes: float = 5.0
    keep_checkpoints: int = 2
    preview_every: int = 0
    preview_prompt: str = ""
    preview_seed: int = 0
    damping: float = 0.01
    text_encoder_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", PRECISIONS),
            ("flip", FLIPS),
            ("optimizer", OPTIMIZERS),
            ("targets", TARGETS),
            ("schedule", SCHEDULES),
            ("timesteps", TIMESTEPS),
            ("memory", MEMORY),
        ):
            value = getattr(self, name)
            require(
                value in allowed,
                f"{name} must be one of {', '.join(allowed)}, got {value!r}; choose one of them",
            )
        require(
            self.resolution == 0 or self.resolution >= 16,
            f"resolution must be 0 (default) or at least 16 pixels, got {self.resolution}",
        )
        for name, least in (
            ("batch_size", 1),
            ("accumulation", 1),
            ("keep_checkpoints", 1),
            ("warmup", 0),
            ("rows_per_pass", 0),
            ("max_grad_norm", 0.0),
            ("min_snr_gamma", 0.0),
            ("noise_offset", 0.0),
            ("save_every_steps", 0),
            ("save_every_minutes", 0.0),
            ("preview_every", 0),
            ("damping", 0.0),
            ("text_encoder_rate", 0.0),
        ):
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, got {value}; raise it")
        for name, most in (("caption_dropout", 1.0), ("outside_mask", 1.0), ("ema_decay", 0.99999)):
            value = getattr(self, name)
            require(0.0 <= value <= most, f"{name} must lie between 0 and {most}, got {value}")
        require(
            self.timestep_shift > 0,
            f"timestep_shift must be above 0, got {self.timestep_shift}; 1 is no shift",
        )

    @property
    def samples(self) -> int:
        """Return the number of samples per update."""
        return self.batch_size * self.accumulation

    def identity_fields(self) -> dict[str, Any]:
        """Return the non-default settings that change the result, as part of the run's id.

        Defaults are left out, so that a new setting does not change the ids of older runs.
        """
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _WITHOUT_EFFECT and getattr(self, field.name) != field.default
        }
