"""The node Train Style from Pairs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training.config import PACKINGS
from ...training.recipes.pair import STYLE
from ..bridge.inputs import (
    base_inputs,
    rank_input,
    rate_input,
    run_name_input,
    seed_input,
    settings_input,
    steps_input,
    text_input,
)
from ..bridge.node_output import node_display
from ..trainer.request import read_request
from ..trainer.run import run_training
from .train import PairTrainer, content_file


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
                *base_inputs("The base's text encoder, for the prompts."),
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
                text_input(
                    "content_prompt",
                    "What the picture before shows. One prompt serves all pairs; a list "
                    "gives each pair its own.",
                    placeholder="a photo of a dog",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    placeholder="in digital art style",
                    tooltip="Words that name the style. They follow the content prompt, and later "
                    "any prompt that wants the style.",
                ),
                steps_input(
                    "Training steps. 0 is the model family's default: 750 for SDXL (the "
                    "paper) and for SD1.5 and SD2 (ours), 1500 for Flux (the authors' port) and "
                    "the other families (ours)."
                ),
                rank_input(
                    "Size of each LoRA. 0 is the family's default: 64 for SDXL (the "
                    "paper), SD1.5 and SD2 (ours), 32 for Flux (the authors' port) and the "
                    "others (ours). Twice the rank must fit the narrowest layer."
                ),
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the family's default: 0.00001 for SDXL "
                    "(the paper) and Flux (the authors' port), and for the others (ours).",
                ),
                seed_input("Seed for all noise and noise levels; the same seed repeats the run."),
                run_name_input("my_style"),
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
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        trainer = read_request(PairTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        contents = [output.loras[content_file(pair)] for pair in range(len(trainer.pairs))]
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(output.loras[STYLE], contents, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPair]
