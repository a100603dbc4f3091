"""Nodes that train Break-for-Make's halves and make LoRAs of them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training.recipes.break_for_make import GRADIENTS, HALF
from ...training.settings import OPTIMIZERS
from ..bridge.inputs import (
    base_inputs,
    rank_input,
    rate_input,
    run_name_input,
    seed_input,
    settings_input,
    steps_input,
    strength_input,
    text_input,
)
from ..bridge.node_output import node_display
from ..bridge.socket_types import LARGEST_SEED, HalfType
from ..trainer.request import read_request
from ..trainer.run import run_training
from .make import MakeTrainer, make_loras
from .train_half import HalfTrainer

_SEED = "Seed for all noise, noise levels and sampled pictures; the same seed repeats the run."


class TrainHalf(io.ComfyNode):
    """One half of Break-for-Make: a content or a style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainHalf",
            display_name="Train Half",
            category="Pastiche/train",
            description=(
                "Learns a content or a style as one half of a LoRA, so that any content half fits "
                "any style half of the same base. Make joins two. Break-for-Make, Xu et al. 2024, "
                "arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "content half", "style half", "train lora"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs("The base's text encoder, for the prompts."),
                io.Combo.Input(
                    "role",
                    options=["content", "style"],
                    tooltip="Whether the pictures show one content or one style.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the content (about 4) or in the style (1 to 3).",
                ),
                text_input(
                    "prompt",
                    "What the pictures show, with the token. One text serves all; a list "
                    "gives each its own.",
                    placeholder="a photo of snq teddybear",
                ),
                io.String.Input(
                    "token",
                    default="",
                    placeholder="snq",
                    tooltip="The rare word of the prompt that will call the half up. It is kept "
                    "in the file, and content and style must not share one.",
                ),
                text_input(
                    "auxiliary_prompts",
                    "Pictures of other contents for a style, in other styles for a "
                    "content, one per line; three or more. Without auxiliary_images the base "
                    "draws each once. Empty: none, and the half may fit others less.",
                    placeholder="a teapot in sticker style",
                ),
                steps_input(
                    "Training steps. 0 is the default of 1000: the released style "
                    "script's for SDXL, ours for the others."
                ),
                rank_input(
                    "Size of the LoRA. 0 is the default of 64, the released scripts'. "
                    "Halves that are to fit need the same."
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate of the part that the half owns. 0 is the default of 0.0001, "
                    "which the released scripts use.",
                ),
                seed_input(_SEED),
                run_name_input("my_half"),
                io.Float.Input(
                    "partner_rate",
                    default=HalfTrainer.partner_rate,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    advanced=True,
                    tooltip="Share of the learning rate at which the partner learns from the "
                    "auxiliary pictures. 0 is the default of 0.1, the released scripts'.",
                ),
                io.Combo.Input(
                    "gradients",
                    options=list(GRADIENTS),
                    default=HalfTrainer.gradients,
                    advanced=True,
                    tooltip="isolated: the pictures move the half alone, the auxiliary ones its "
                    "partner alone, as the paper means it. leaky: both reach both, as in the "
                    "released code.",
                ),
                io.Combo.Input(
                    "start",
                    options=["orthogonal", "released", "exact"],
                    default=HalfTrainer.start,
                    advanced=True,
                    tooltip="How the frozen parts are drawn: one orthonormal basis at every "
                    "layer; at square query, key and value layers alone, as in the released "
                    "code; or with a product of exactly nothing.",
                ),
                io.Combo.Input(
                    "content_owns",
                    options=["down", "up"],
                    default=HalfTrainer.content_owns,
                    advanced=True,
                    tooltip="The part that contents own; styles own the other. down is the "
                    "released code's; the paper's figure shows up.",
                ),
                io.Int.Input(
                    "basis_seed",
                    default=HalfTrainer.basis_seed,
                    min=0,
                    max=LARGEST_SEED,
                    advanced=True,
                    tooltip="Seed of the frozen parts. Halves fit together only with equal seeds.",
                ),
                io.Image.Input(
                    "auxiliary_images",
                    optional=True,
                    tooltip="Pictures of your own for auxiliary_prompts, one per line or one line "
                    "for all.",
                ),
                settings_input(),
            ],
            outputs=[
                HalfType.Output(display_name="half", tooltip="For Make and Save Half."),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The same as a LoRA, to be applied alone."
                ),
                io.LossMap.Output(
                    display_name="losses", tooltip="Curves loss, main and auxiliary."
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        trainer = read_request(HalfTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        half = output.loras[HALF]
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(half, half, output.losses, ui=display)


class Make(io.ComfyNode):
    """A LoRA of a content and a style half."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheMake",
            display_name="Make LoRA of Halves",
            category="Pastiche/merge",
            description=(
                "Joins a content and a style half into one ordinary LoRA: at once, or after a "
                "short joint training on the pictures of both. With several contents and styles "
                "it makes every combination. Break-for-Make, Xu et al. 2024, arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "merge halves", "join halves", "remake"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                HalfType.Input("contents", tooltip="One content half, or a list of them."),
                HalfType.Input("styles", tooltip="One style half, or a list of them."),
                strength_input(
                    "content_strength", "How strongly the content shows; never trains anew."
                ),
                strength_input(
                    "style_strength", "How strongly the style shows; never trains anew."
                ),
                steps_input(
                    "Steps of joint training; 0 joins the halves without it. The released "
                    "script allows 1000 and keeps every 50th: a few hundred balance content and "
                    "style. Joint training needs all inputs below."
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate of the joint training. 0 is the default of 0.0001, which the "
                    "released script uses.",
                ),
                seed_input(_SEED),
                run_name_input("my_lora"),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=MakeTrainer.optimizer,
                    advanced=True,
                    tooltip="Optimizer of the joint training, which overrides the settings. Scaled "
                    "AdamW is the paper's: a half does not learn faster because it is larger.",
                ),
                io.Model.Input("model", optional=True, tooltip="The base, for joint training."),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoder."),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE."),
                io.Image.Input(
                    "content_images",
                    optional=True,
                    tooltip="The pictures that the content half was trained on.",
                ),
                text_input(
                    "content_prompt",
                    "The prompt that the content half was trained with.",
                    optional=True,
                ),
                io.Image.Input(
                    "style_images",
                    optional=True,
                    tooltip="The pictures that the style half was trained on.",
                ),
                text_input(
                    "style_prompt",
                    "The prompt that the style half was trained with.",
                    optional=True,
                ),
                settings_input(),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    is_output_list=True,
                    tooltip="Every content with every style; ordinary LoRAs.",
                ),
                io.LossMap.Output(display_name="losses", tooltip="Curves loss, content and style."),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Join the halves, and train them together where steps are given."""
        trainer = read_request(MakeTrainer, inputs, cls.hidden.unique_id)
        loras, output = make_loras(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(loras, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainHalf, Make]
