"""The node that says how to train."""

from __future__ import annotations

from typing import Any

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
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Precision of the base's computation. auto keeps the precision in which "
                    "the base is loaded, except that fp16 becomes bf16 or fp32. Trained weights are "
                    "always kept in fp32.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    tooltip="Shorter side in pixels that pictures are resized to; smaller ones "
                    "are never enlarged. 0 is the family's default, 512 for most.",
                ),
                io.Combo.Input(
                    "flip",
                    options=list(FLIPS),
                    default="never",
                    tooltip="Mirror the pictures never, always (as the authors' code does) or at "
                    "random. Leave it at never where text or sides matter.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="AdamW",
                    tooltip="The paper's is AdamW. Adafactor needs less memory, SGD the least. The last "
                    "three look at both factors of a layer together: Scaled SGD (rates 100 to "
                    "1000 times AdamW's), Scaled AdamW (rates as AdamW's) and LoRA-RITE.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.0001,
                    round=0.00001,
                    tooltip="Pulls what is learnt towards nothing. -1 is the family's default: "
                    "0.0001 for SDXL (the paper), 0.01 for Flux (the authors' port).",
                ),
                io.Combo.Input(
                    "targets",
                    options=list(TARGETS),
                    default="attention",
                    tooltip="Which layers learn. The paper's are the attention layers.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Samples in one pass; for pairs, the noise levels that a step takes. "
                    "More is steadier and slower.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY),
                    default="as set",
                    optional=True,
                    tooltip="A preset for a card of that size: it sets checkpointing, offload and "
                    "rows_per_pass. as set takes those three as they stand below.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="constant",
                    optional=True,
                    tooltip="Course of the learning rate. constant can be extended by more steps "
                    "later; linear and cosine fall to nothing at the last step.",
                ),
                io.Int.Input(
                    "warmup",
                    default=0,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="Steps over which the learning rate rises. 10 to 100 calm a restless "
                    "start.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=0,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="Steps between preview pictures; 0 draws one only when Sample now is "
                    "pressed. They cost time and change nothing that is learnt.",
                ),
                io.String.Input(
                    "preview_prompt",
                    default="",
                    optional=True,
                    tooltip="What a preview shows. Empty is the trainer's own prompt.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Passes of batch_size samples that share one update: a larger batch "
                    "without more memory.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Longer gradients are shortened to this; 0 leaves them. 1 is usual.",
                ),
                io.Combo.Input(
                    "timesteps",
                    options=list(TIMESTEPS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Which noise levels are drawn: uniform all alike, logit-normal more of "
                    "the middle, shifted more of the noisy ones. auto is the method's or the "
                    "family's default.",
                ),
                io.Float.Input(
                    "timestep_shift",
                    default=3.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Shift of the shifted schedule; above 1 favours noisy timesteps, 1 is "
                    "uniform.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Weighs noise levels by their signal (min-SNR); 5 is usual, 0 is off.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Lets the brightness of whole pictures be learnt; 0.03 to 0.1, 0 is "
                    "off. For models that predict noise.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of samples that are trained without their caption; 0.05 to 0.1 "
                    "lets the result show without its words too.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=0.00001,
                    optional=True,
                    advanced=True,
                    tooltip="The result becomes an average over the last steps: 0.99 over about "
                    "100, 0.999 over about 1000. 0 takes the last step as it is.",
                ),
                io.Float.Input(
                    "outside_mask",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="What a picture still counts outside its mask, where masks are "
                    "connected: 0 nothing, 1 as much as inside.",
                ),
                io.String.Input(
                    "target_pattern",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Layers by name instead of targets, such as *attn2*; several parted by "
                    "spaces, -*.out* leaves layers out.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Computes each block again instead of keeping it: much less memory, "
                    "about a third slower, the same result.",
                ),
                io.Boolean.Input(
                    "offload",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keeps the base in ordinary memory and brings one layer at a time to "
                    "the card: slow, for models that don't fit. Includes checkpointing.",
                ),
                io.Int.Input(
                    "rows_per_pass",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="Rows that go through the model at once; 0 is no limit. 1 needs least "
                    "memory; the result is the same up to rounding.",
                ),
                io.Int.Input(
                    "save_every_steps",
                    default=0,
                    min=0,
                    max=100_000,
                    optional=True,
                    advanced=True,
                    tooltip="Steps between checkpoints, from which a run goes on after a crash; 0 "
                    "goes by minutes alone. Cancelling always keeps the last step.",
                ),
                io.Float.Input(
                    "save_every_minutes",
                    default=5.0,
                    min=0.0,
                    max=1440.0,
                    step=1.0,
                    round=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Minutes between checkpoints; 0 goes by steps alone.",
                ),
                io.Int.Input(
                    "keep_checkpoints",
                    default=2,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="How many checkpoints stay in the run's folder; older ones are "
                    "removed.",
                ),
                io.Int.Input(
                    "preview_seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    optional=True,
                    advanced=True,
                    tooltip="Seed of the noise that every preview starts from.",
                ),
                io.Float.Input(
                    "damping",
                    default=0.01,
                    min=0.0,
                    max=1e6,
                    step=0.0001,
                    round=1e-8,
                    optional=True,
                    advanced=True,
                    tooltip="Damping of Scaled SGD and Scaled AdamW, relative to each factor's mean. "
                    "It prevents huge steps while a factor is small; 0 is off, and a very large "
                    "value turns Scaled AdamW into AdamW.",
                ),
                io.Float.Input(
                    "text_encoder_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=1e-8,
                    optional=True,
                    advanced=True,
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
