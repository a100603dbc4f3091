"""What all trainers share and a user may set, checked where it is made."""

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

# They change memory, time or what is looked at, not what is learnt beyond rounding: a run that ran
# out of memory goes on with other values of these.
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
    """What all trainers share; new fields go to the end, with a default that changes nothing.

    Args:
        precision: Of the base's computation. ``auto`` keeps the one it is loaded in, except that
            fp16, whose small gradients vanish, becomes bf16 where the device has it, else fp32.
            Adapters are always learnt in fp32.
        resolution: Shorter side in pixels that images are resized to; 0 is the family's default.
        flip: Mirror every image never, always (as the released Pair code does) or at random.
        optimizer: One of ``OPTIMIZERS``.
        weight_decay: Decoupled decay; negative is the family's default.
        targets: Which layers get an adapter, one of ``TARGETS``.
        batch_size: Samples per forward; for pairs, the noise levels that a step takes.
        schedule: Course of the learning rate, one of ``SCHEDULES``.
        warmup: Steps over which the rate rises.
        accumulation: Forwards of ``batch_size`` samples whose gradients add up to one update.
        max_grad_norm: Longer gradients are shortened to it; 0 leaves them.
        timesteps: How noise levels are drawn; ``auto`` is the method's or family's default.
        timestep_shift: Of ``shifted``; above 1 draws more of the noisy levels.
        min_snr_gamma: Hang et al.'s weighting; 0 is off, 5 is theirs.
        noise_offset: Share of noise that is constant over a channel; 0 is off.
        caption_dropout: Share of rows that are trained without their caption.
        ema_decay: Of the averaged adapter that becomes the result; 0 is off.
        outside_mask: What a picture counts outside its mask, 0 to 1.
        target_pattern: Layers by name instead of ``targets``: glob patterns, parted by spaces or
            commas; one with ``-`` in front leaves layers out.
        memory: A preset for a card, one of ``MEMORY``; it sets the next three.
        checkpointing: Recompute each block in backward: less memory, a third slower.
        offload: Keep the base's weights in ordinary memory, on the device only while in use; implies
            checkpointing, without which backward would hold every weight on the device.
        rows_per_pass: Rows in one forward at most; 0 is no limit.
        save_every_steps: Steps between checkpoints; 0 goes by minutes alone.
        save_every_minutes: Minutes between checkpoints; 0 goes by steps alone.
        keep_checkpoints: How many are kept.
        preview_every: Steps between preview pictures; 0 draws none.
        preview_prompt: What a preview shows; empty is the trainer's own prompt.
        preview_seed: Of the previews' noise.
        damping: Of the preconditioned optimisers, in each Gram's mean eigenvalue; 0 is none.
        text_encoder_rate: Learning rate of an adapter in the text encoder, CLIP-L and CLIP-G; 0
            leaves it as it is.

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
        """Return the samples that one update learns from."""
        return self.batch_size * self.accumulation

    def deciding(self) -> dict[str, Any]:
        """Return what decides a result and differs from the default.

        Defaults are left out, so that a later setting changes no older run's id.
        """
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _WITHOUT_EFFECT and getattr(self, field.name) != field.default
        }
