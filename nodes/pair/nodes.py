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
    """Trains one style, and one content per pair, from before/after pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheTrainPair",
            display_name="Train Style from Pairs",
            category="Pastiche/train",
            description=(
                "Trains a style from one or more before/after pairs of pictures, and separates "
                "it from the content of the pictures. The result is saved below "
                "output/pastiche, so an equal graph is not trained twice. Pair Customization, "
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
                *base_inputs("Text encoder of the base, which encodes the prompts."),
                io.Image.Input(
                    "before",
                    tooltip="Pictures before the style: one picture, a list or a batch. Large "
                    "pictures are resized, and transparent parts become white.",
                ),
                io.Image.Input(
                    "after",
                    tooltip="The same pictures in the style, in the same order. Each is resized "
                    "and cropped to the frame of its before picture.",
                ),
                text_input(
                    "content_prompt",
                    "Description of the before picture. One prompt is used for all pairs; a "
                    "list has one prompt per pair.",
                    placeholder="a photo of a dog",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    placeholder="in digital art style",
                    tooltip="Words for the style. In training they are appended to the content "
                    "prompt; later, append them to any prompt that should use the style.",
                ),
                steps_input(
                    "Number of training steps. 0 is the model family's default: 750 for SDXL (the "
                    "paper) and for SD1.5 and SD2 (ours), 1500 for Flux (the authors' port) and "
                    "the other families (ours)."
                ),
                rank_input(
                    "Rank of each LoRA. 0 is the family's default: 64 for SDXL (the paper), SD1.5 "
                    "and SD2 (ours), 32 for Flux (the authors' port) and the others (ours). Twice "
                    "the rank must not exceed the width of the narrowest layer."
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate. 0 is the family's default: 0.00001 for SDXL (the paper) and "
                    "Flux (the authors' port), and for the others (ours).",
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
                    tooltip="Fraction of the steps that train only the content, before the "
                    "training of the style starts. 1/3 is SDXL's 250 of 750; the Flux port uses "
                    "1/2.",
                ),
                io.Combo.Input(
                    "packing",
                    options=list(PACKINGS),
                    default="batched",
                    advanced=True,
                    tooltip="Whether content and style share a forward pass and an update "
                    "(batched) or are trained one after the other, as in the authors' code "
                    "(sequential). sequential needs less memory.",
                ),
                settings_input(),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="style", tooltip="LoRA of the style, for style guidance or saving."
                ),
                io.LoraModel.Output(
                    display_name="content",
                    is_output_list=True,
                    tooltip="LoRA of each pair's content; it is not needed to use the style.",
                ),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Loss curves loss, content and style; ComfyUI's Plot Loss Graph draws "
                    "loss.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or return the result of an equal finished run."""
        trainer = read_request(PairTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        contents = [output.loras[content_file(pair)] for pair in range(len(trainer.pairs))]
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(output.loras[STYLE], contents, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPair]
