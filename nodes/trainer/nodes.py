"""The node Training Settings."""

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
    """Return the input of a setting, with the default of ``TrainingSettings``."""
    return kind(name, default=getattr(TrainingSettings, name), **declared)


def _later(kind: Callable[..., Input], name: str, **declared: Any) -> Input:
    """Return the input of a setting that is missing in graphs of older versions."""
    return _setting(kind, name, optional=True, **declared)


def _advanced(kind: Callable[..., Input], name: str, **declared: Any) -> Input:
    """Return such an input in the collapsed section of the node."""
    return _later(kind, name, advanced=True, **declared)


class TrainingSettingsNode(io.ComfyNode):
    """Training options that all trainers of the pack share."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema; new inputs must be appended at the end."""
        return io.Schema(
            node_id="PasticheTrainingSettings",
            display_name="Training Settings (Pastiche)",
            category="Pastiche/train",
            description=(
                "Options for every trainer of Pastiche, such as precision, resolution and "
                "optimizer. A trainer without these settings uses the defaults of its method "
                "for the model family."
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
                    tooltip="Precision of the base's computation. auto keeps the precision in "
                    "which the base is loaded, except that fp16 becomes bf16 or fp32. Trained "
                    "weights are always kept in fp32.",
                ),
                _setting(
                    io.Int.Input,
                    "resolution",
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Shorter side in pixels to which pictures are resized; smaller "
                    "pictures are never enlarged. 0 is the default of the model family, 512 for "
                    "most.",
                ),
                _setting(
                    io.Combo.Input,
                    "flip",
                    options=list(FLIPS),
                    tooltip="Whether pictures are mirrored: never, always (as in the authors' "
                    "code) or at random. Keep never if they contain text or if left and right "
                    "matter.",
                ),
                _setting(
                    io.Combo.Input,
                    "optimizer",
                    options=list(OPTIMIZERS),
                    tooltip="Optimizer. The papers use AdamW; Adafactor needs less memory and SGD "
                    "the least. Scaled SGD, Scaled AdamW and LoRA-RITE take both factors of a "
                    "layer into account; Scaled SGD needs learning rates 100 to 1000 times as "
                    "high as AdamW, Scaled AdamW the same.",
                ),
                _setting(
                    io.Float.Input,
                    "weight_decay",
                    min=-1.0,
                    max=1.0,
                    step=0.0001,
                    round=0.00001,
                    tooltip="Weight decay, which shrinks the trained weights in every step. -1 is "
                    "the default of the method, such as 0.0001 for pairs on SDXL (the paper).",
                ),
                _setting(
                    io.Combo.Input,
                    "targets",
                    options=list(TARGETS),
                    tooltip="Layers to train. The papers train the attention layers; more layers "
                    "learn more details and need more memory.",
                ),
                _setting(
                    io.Int.Input,
                    "batch_size",
                    min=1,
                    max=64,
                    tooltip="Samples per batch; for pairs, the noise levels per step. Larger "
                    "batches make the training steadier and slower.",
                ),
                _later(
                    io.Combo.Input,
                    "memory",
                    options=list(MEMORY),
                    tooltip="Preset for a GPU with this much memory, which sets checkpointing, "
                    "offload and rows_per_pass. as set uses the values of these three inputs.",
                ),
                _later(
                    io.Combo.Input,
                    "schedule",
                    options=list(SCHEDULES),
                    tooltip="Schedule of the learning rate. A run with constant can be extended by "
                    "more steps later; linear and cosine decay to 0 at the last step.",
                ),
                _later(
                    io.Int.Input,
                    "warmup",
                    min=0,
                    max=100_000,
                    tooltip="Steps over which the learning rate rises from 0. Set 10 to 100 if the "
                    "loss is unstable at the start.",
                ),
                _later(
                    io.Int.Input,
                    "preview_every",
                    min=0,
                    max=100_000,
                    tooltip="Steps between preview pictures; 0 draws one only when Sample now is "
                    "pressed. Previews take time but do not influence the training.",
                ),
                _later(
                    io.String.Input,
                    "preview_prompt",
                    tooltip="Prompt of the previews. If empty, the trainer's own prompt is used.",
                ),
                _advanced(
                    io.Int.Input,
                    "accumulation",
                    min=1,
                    max=64,
                    tooltip="Batches of batch_size samples whose gradients are accumulated for one "
                    "step. It works like a larger batch without needing more memory.",
                ),
                _advanced(
                    io.Float.Input,
                    "max_grad_norm",
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Maximum norm of the gradient, to which longer gradients are clipped. "
                    "0 disables clipping; 1 is a common value.",
                ),
                _advanced(
                    io.Combo.Input,
                    "timesteps",
                    options=list(TIMESTEPS),
                    tooltip="Distribution of the training timesteps: uniform, logit-normal "
                    "(favours medium noise) or shifted (favours high noise). auto is the default "
                    "of the method and the model family.",
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
                    tooltip="Gamma of min-SNR weighting, which reduces the weight of timesteps "
                    "with little noise. 5 is a common value, 0 is off.",
                ),
                _advanced(
                    io.Float.Input,
                    "noise_offset",
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Strength of the noise offset, which lets the model learn very dark "
                    "and very bright pictures. Use 0.03 to 0.1 for models that predict noise; 0 "
                    "is off.",
                ),
                _advanced(
                    io.Float.Input,
                    "caption_dropout",
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="Fraction of samples that are trained without their caption. With "
                    "0.05 to 0.1 the result also works without its trigger words.",
                ),
                _advanced(
                    io.Float.Input,
                    "ema_decay",
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=0.00001,
                    tooltip="Decay of the moving average of the weights (EMA) that becomes the "
                    "result: 0.99 averages about 100 steps, 0.999 about 1000. 0 uses the weights "
                    "of the last step.",
                ),
                _advanced(
                    io.Float.Input,
                    "outside_mask",
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    tooltip="Weight of the loss outside the mask, if masks are connected: 0 "
                    "ignores it, 1 weighs it like the inside.",
                ),
                _advanced(
                    io.String.Input,
                    "target_pattern",
                    tooltip="Name patterns of the layers to train, such as *attn2*, which replace "
                    "targets. Separate several by spaces; a pattern like -*.out* excludes layers.",
                ),
                _advanced(
                    io.Boolean.Input,
                    "checkpointing",
                    tooltip="Gradient checkpointing: recomputes each block in the backward pass, "
                    "which needs much less memory, is about a third slower and gives the same "
                    "result.",
                ),
                _advanced(
                    io.Boolean.Input,
                    "offload",
                    tooltip="Keeps the base in CPU memory and copies one layer at a time to the "
                    "GPU. It is slow; use it for models that don't fit. It includes checkpointing.",
                ),
                _advanced(
                    io.Int.Input,
                    "rows_per_pass",
                    min=0,
                    max=1024,
                    tooltip="Maximum number of rows in one forward pass; 0 is no limit. 1 needs "
                    "the least memory, and the result is the same up to rounding.",
                ),
                _advanced(
                    io.Int.Input,
                    "save_every_steps",
                    min=0,
                    max=100_000,
                    tooltip="Steps between checkpoints, from which a run is resumed after a "
                    "crash; 0 uses only save_every_minutes. Cancelling always saves the last step.",
                ),
                _advanced(
                    io.Float.Input,
                    "save_every_minutes",
                    min=0.0,
                    max=1440.0,
                    step=1.0,
                    round=0.1,
                    tooltip="Minutes between checkpoints; 0 uses only save_every_steps.",
                ),
                _advanced(
                    io.Int.Input,
                    "keep_checkpoints",
                    min=1,
                    max=100,
                    tooltip="Number of checkpoints that stay in the run's folder; older ones are "
                    "removed.",
                ),
                _advanced(
                    io.Int.Input,
                    "preview_seed",
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise from which all previews start.",
                ),
                _advanced(
                    io.Float.Input,
                    "damping",
                    min=0.0,
                    max=1e6,
                    step=0.0001,
                    round=1e-8,
                    tooltip="Damping of Scaled SGD and Scaled AdamW, relative to each factor's "
                    "mean. It prevents huge steps while a factor is small; 0 is off, and a very "
                    "large value turns Scaled AdamW into AdamW.",
                ),
                _advanced(
                    io.Float.Input,
                    "text_encoder_rate",
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=1e-8,
                    tooltip="Learning rate of the text encoder (CLIP-L, CLIP-G); 0 does not train "
                    "it. Mix-of-Show uses a tenth of the model's rate. Such a LoRA must be "
                    "applied to the CLIP too.",
                ),
            ],
            outputs=[TrainingSettingsType.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the settings after checking them; inputs missing in older graphs get defaults."""
        return io.NodeOutput(TrainingSettings(**values))


NODES: list[type[io.ComfyNode]] = [TrainingSettingsNode]
