"""Nodes that train."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training import TrainingSettings
from ..training.config import FLIPS, OPTIMIZERS, PACKINGS, PRECISIONS, TARGETS
from .bridge.pair_plan import PairRequest
from .bridge.progress import node_display
from .bridge.train_pair import train_pair
from .bridge.types import TrainingSettingsType, only

_LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


class TrainPair(io.ComfyNode):
    """Pair Customization: one style and a content per pair from before/after pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainPair",
            display_name="Train Style from Pairs",
            category="Pastiche/train",
            description=(
                "Learns a style from one or more before/after pairs of pictures, and keeps what "
                "the pictures show apart from how they look. The result is kept below "
                "output/pastiche: an equal graph is not trained twice. Pair Customization, "
                "Jones et al. 2024, arXiv:2405.01536."
            ),
            search_aliases=[
                "pair customization",
                "before after",
                "train lora",
                "style lora",
                "learn style",
                "stylize",
            ],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base to learn on; it is not changed."),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the prompts."),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
                io.Image.Input(
                    "before",
                    tooltip="The pictures before the style, one or a list or batch of them. Large "
                    "ones are resized, transparent parts become white.",
                ),
                io.Image.Input(
                    "after",
                    tooltip="The same pictures in the style, in the same order. Each is fitted "
                    "onto the frame of its before picture.",
                ),
                io.String.Input(
                    "content_prompt",
                    default="",
                    multiline=True,
                    placeholder="a photo of a dog",
                    tooltip="What the picture before shows. One prompt serves all pairs; a list "
                    "gives each pair its own.",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    placeholder="in digital art style",
                    tooltip="Words that name the style. They follow the content prompt, and later "
                    "any prompt that wants the style.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Training steps. 0 is the model family's default: 750 for SDXL (the "
                    "paper) and for SD1.5 and SD2 (ours), 1500 for Flux (the authors' port) and "
                    "the other families (ours).",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Size of each LoRA. 0 is the family's default: 64 for SDXL (the "
                    "paper), SD1.5 and SD2 (ours), 32 for Flux (the authors' port) and the "
                    "others (ours). Twice the rank must fit the narrowest layer.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=1e-8,
                    tooltip="How far a step goes. 0 is the family's default: 0.00001 for SDXL "
                    "(the paper) and Flux (the authors' port), and for the others (ours).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=_LARGEST_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of all noise and noise levels; equal seeds give equal results.",
                ),
                io.String.Input(
                    "run_name",
                    default="my_style",
                    tooltip="Name of the run's folder below output/pastiche.",
                ),
                io.Float.Input(
                    "style_start",
                    default=0.3333,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=0.0001,
                    advanced=True,
                    tooltip="Share of the steps that learn only the content before the style "
                    "joins: 1/3 is SDXL's 250 of 750; the Flux port starts at 1/2.",
                ),
                io.Combo.Input(
                    "packing",
                    options=list(PACKINGS),
                    default="batched",
                    advanced=True,
                    tooltip="batched takes content and style in one pass and one update; "
                    "sequential takes them one after the other, as the authors' code does, with "
                    "less memory.",
                ),
                TrainingSettingsType.Input(
                    "settings", optional=True, tooltip="From Training Settings (Pastiche)."
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="style", tooltip="The style, for guidance or saving."
                ),
                io.LoraModel.Output(
                    display_name="content",
                    is_output_list=True,
                    tooltip="What each pair shows; not needed to use the style.",
                ),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Curves loss, content and style; core's Plot Loss Graph draws loss.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        before: list[Any],
        after: list[Any],
        content_prompt: list[str],
        style_words: list[str],
        steps: list[int],
        rank: list[int],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        style_start: list[float],
        packing: list[str],
        settings: list[TrainingSettings] | None = None,
    ) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        result = train_pair(
            PairRequest(
                model=only("model", model),
                clip=only("clip", clip),
                vae=only("vae", vae),
                before=before,
                after=after,
                content_prompts=content_prompt,
                style_words=only("style_words", style_words),
                steps=only("steps", steps),
                rank=only("rank", rank),
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                style_start=only("style_start", style_start),
                packing=only("packing", packing),
                settings=only("settings", settings or [TrainingSettings()]),
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.style, result.contents, result.losses, ui=display)


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
            search_aliases=["train options", "optimizer", "weight decay", "batch size", "lora"],
            inputs=[
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Of the base's computation. auto keeps the precision the base is "
                    "loaded in, except that fp16 becomes bf16 or fp32. What is learnt is always "
                    "kept in fp32.",
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
                    tooltip="The paper's is AdamW. Adafactor needs less memory, SGD the least.",
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
                    tooltip="Samples per step; for pairs, the noise levels that a step takes. "
                    "More is steadier and slower.",
                ),
            ],
            outputs=[TrainingSettingsType.Output(display_name="settings")],
        )

    @classmethod
    def execute(
        cls,
        precision: str,
        resolution: int,
        flip: str,
        optimizer: str,
        weight_decay: float,
        targets: str,
        batch_size: int,
    ) -> io.NodeOutput:
        """Return the settings, checked."""
        settings = TrainingSettings(
            precision, resolution, flip, optimizer, weight_decay, targets, batch_size
        )
        return io.NodeOutput(settings)


NODES = [TrainPair, TrainingSettingsNode]
