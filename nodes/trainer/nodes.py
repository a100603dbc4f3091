"""The node that says how to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from comfy_api.latest import io

from ...training import TrainingSettings
from ...training.settings import (
    FLIPS,
    MEMORY,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    TARGETS,
    TIMESTEPS,
)
from ..bridge.socket_types import LARGEST_SEED, TrainingSettingsType

Input = TypeVar("Input", bound=io.Input)


def _setting(kind: Callable[..., Input], name: str, **declared: Any) -> Input:
    """Return the input of a setting; its default is the setting's own."""
    return kind(name, default=getattr(TrainingSettings, name), **declared)


def _later(kind: Callable[..., Input], name: str, **declared: Any) -> Input:
    """Return the input of a setting that older graphs don't know."""
    return _setting(kind, name, optional=True, **declared)


def _advanced(kind: Callable[..., Input], name: str, **declared: Any) -> Input:
    """Return the input of a later setting that the node folds away."""
    return _later(kind, name, advanced=True, **declared)


class TrainingSettingsNode(io.ComfyNode):
    """What all trainers of the pack share."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs; new inputs go to the end."""
        return io.Schema(
            node_id="PasticheTrainingSettings",
            display_name="Training Settings (Pastiche)",
            category="Pastiche/train",
            description=(
                "What every trainer of Pastiche understands, such as precision and resolution. "
                "A trainer without it uses the defaults of Pair Customization, Jones et al. "
                "2024, arXiv:2405.01536, for its model family."
            ),
            search_aliases=[
                "train options",
                "optimizer",
                "learning rate schedule",
                "gradient checkpointing",
                "ema",
                "min snr",
                "batch size",
                "low vram training",
                "lora",
            ],
            inputs=[
                _setting(
                    io.Combo.Input,
                    "precision",
                    options=list(PRECISIONS),
                    tooltip="Precision of the base's computation. auto keeps the precision in which "
                    "the base is loaded, except that fp16 becomes bf16 or fp32. Trained weights are "
                    "always kept in fp32.",
                ),
                _setting(
                    io.Int.Input,
                    "resolution",
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Shorter side in pixels that pictures are resized to; smaller ones "
                    "are never enlarged. 0 is the family's default, 512 for most.",
                ),
                _setting(
                    io.Combo.Input,
                    "flip",
                    options=list(FLIPS),
                    tooltip="Mirror the pictures never, always (as the authors' code does) or at "
                    "random. Leave it at never where text or sides matter.",
                ),
                _setting(
                    io.Combo.Input,
                    "optimizer",
                    options=list(OPTIMIZERS),
                    tooltip="The paper's is AdamW. Adafactor needs less memory, SGD the least. The last "
                    "three look at both factors of a layer together: Scaled SGD (rates 100 to "
                    "1000 times AdamW's), Scaled AdamW (rates as AdamW's) and LoRA-RITE.",
                ),
                _setting(
                    io.Float.Input,
                    "weight_decay",
                    min=-1.0,
                    max=1.0,
                    step=0.0001,
                    round=0.00001,
                    tooltip="Pulls what is learnt towards nothing. -1 is the family's default: "
                    "0.0001 for SDXL (the paper), 0.01 for Flux (the authors' port).",
                ),
                _setting(
                    io.Combo.Input,
                    "targets",
                    options=list(TARGETS),
                    tooltip="Which layers learn. The paper's are the attention layers.",
                ),
                _setting(
                    io.Int.Input,
                    "batch_size",
                    min=1,
                    max=64,
                    tooltip="Samples in one pass; for pairs, the noise levels that a step takes. "
                    "More is steadier and slower.",
                ),
                _later(
                    io.Combo.Input,
                    "memory",
                    options=list(MEMORY),
                    tooltip="A preset for a card of that size: it sets checkpointing, offload and "
                    "rows_per_pass. as set takes those three as they stand below.",
                ),
                _later(
                    io.Combo.Input,
                    "schedule",
                    options=list(SCHEDULES),
                    tooltip="Course of the learning rate. constant can be extended by more steps "
                    "later; linear and cosine fall to nothing at the last step.",
                ),
                _later(
                    io.Int.Input,
                    "warmup",
                    min=0,
                    max=100_000,
                    tooltip="Steps over which the learning rate rises. 10 to 100 calm a restless "
                    "start.",
                ),
                _later(
                    io.Int.Input,
                    "preview_every",
                    min=0,
                    max=100_000,
                    tooltip="Steps between preview pictures; 0 draws one only when Sample now is "
                    "pressed. They cost time and change nothing that is learnt.",
                ),
                _later(
                    io.String.Input,
                    "preview_prompt",
                    tooltip="What a preview shows. Empty is the trainer's own prompt.",
                ),
                _advanced(
                    io.Int.Input,
                    "accumulation",
                    min=1,
                    max=64,
                    tooltip="Passes of batch_size samples that share one update: a larger batch "
                    "without more memory.",
                ),
                _advanced(
                    io.Float.Input,
                    "max_grad_norm",
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Longer gradients are shortened to this; 0 leaves them. 1 is usual.",
                ),
                _advanced(
                    io.Combo.Input,
                    "timesteps",
                    options=list(TIMESTEPS),
                    tooltip="Which noise levels are drawn: uniform all alike, logit-normal more of "
                    "the middle, shifted more of the noisy ones. auto is the method's or the "
                    "family's default.",
                ),
                _advanced(
                    io.Float.Input,
                    "timestep_shift",
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Shift of the shifted schedule; above 1 favours noisy timesteps, 1 is "
                    "uniform.",
                ),
                _advanced(
                    io.Float.Input,
                    "min_snr_gamma",
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    round=0.01,
                    tooltip="Weighs noise levels by their signal (min-SNR); 5 is usual, 0 is off.",
                ),
                _advanced(
                    io.Float.Input,
                    "noise_offset",
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Lets the brightness of whole pictures be learnt; 0.03 to 0.1, 0 is "
                    "off. For models that predict noise.",
                ),
                _advanced(
                    io.Float.Input,
                    "caption_dropout",
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="Share of samples that are trained without their caption; 0.05 to 0.1 "
                    "lets the result show without its words too.",
                ),
                _advanced(
                    io.Float.Input,
                    "ema_decay",
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=0.00001,
                    tooltip="The result becomes an average over the last steps: 0.99 over about "
                    "100, 0.999 over about 1000. 0 takes the last step as it is.",
                ),
                _advanced(
                    io.Float.Input,
                    "outside_mask",
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="What a picture still counts outside its mask, where masks are "
                    "connected: 0 nothing, 1 as much as inside.",
                ),
                _advanced(
                    io.String.Input,
                    "target_pattern",
                    tooltip="Layers by name instead of targets, such as *attn2*; several parted by "
                    "spaces, -*.out* leaves layers out.",
                ),
                _advanced(
                    io.Boolean.Input,
                    "checkpointing",
                    tooltip="Computes each block again instead of keeping it: much less memory, "
                    "about a third slower, the same result.",
                ),
                _advanced(
                    io.Boolean.Input,
                    "offload",
                    tooltip="Keeps the base in ordinary memory and brings one layer at a time to "
                    "the card: slow, for models that don't fit. Includes checkpointing.",
                ),
                _advanced(
                    io.Int.Input,
                    "rows_per_pass",
                    min=0,
                    max=1024,
                    tooltip="Rows that go through the model at once; 0 is no limit. 1 needs least "
                    "memory; the result is the same up to rounding.",
                ),
                _advanced(
                    io.Int.Input,
                    "save_every_steps",
                    min=0,
                    max=100_000,
                    tooltip="Steps between checkpoints, from which a run goes on after a crash; 0 "
                    "goes by minutes alone. Cancelling always keeps the last step.",
                ),
                _advanced(
                    io.Float.Input,
                    "save_every_minutes",
                    min=0.0,
                    max=1440.0,
                    step=1.0,
                    round=0.1,
                    tooltip="Minutes between checkpoints; 0 goes by steps alone.",
                ),
                _advanced(
                    io.Int.Input,
                    "keep_checkpoints",
                    min=1,
                    max=100,
                    tooltip="How many checkpoints stay in the run's folder; older ones are "
                    "removed.",
                ),
                _advanced(
                    io.Int.Input,
                    "preview_seed",
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise that every preview starts from.",
                ),
                _advanced(
                    io.Float.Input,
                    "damping",
                    min=0.0,
                    max=1e6,
                    step=0.0001,
                    round=1e-8,
                    tooltip="Damping of Scaled SGD and Scaled AdamW, relative to each factor's mean. "
                    "It prevents huge steps while a factor is small; 0 is off, and a very large "
                    "value turns Scaled AdamW into AdamW.",
                ),
                _advanced(
                    io.Float.Input,
                    "text_encoder_rate",
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=1e-8,
                    tooltip="Trains the text encoder (CLIP-L, CLIP-G) too, at this learning rate: "
                    "Mix-of-Show takes a tenth of the model's. 0 leaves it as it is. The LoRA then needs "
                    "its CLIP side loaded as well.",
                ),
            ],
            outputs=[TrainingSettingsType.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the settings, checked; what an older graph doesn't know keeps its default."""
        return io.NodeOutput(TrainingSettings(**values))


NODES: list[type[io.ComfyNode]] = [TrainingSettingsNode]
