"""The node Train Style from Pairs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training import TrainingSettings
from ...training.config import PACKINGS
from ..bridge.inputs import only, rate_input, seed_input, settings_input
from ..bridge.node_output import node_display
from .plan import PairRequest
from .train import train_pair


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
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the family's default: 0.00001 for SDXL "
                    "(the paper) and Flux (the authors' port), and for the others (ours).",
                ),
                seed_input("Seed for all noise and noise levels; the same seed repeats the run."),
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
                settings_input(),
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
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.style, result.contents, result.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPair]
