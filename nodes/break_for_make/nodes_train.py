"""The nodes Train Half and Make LoRA of Halves."""

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
    """Trains one half of Break-for-Make, a content or a style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheTrainHalf",
            display_name="Train Half",
            category="Pastiche/train",
            description=(
                "Trains a content or a style as one half of a LoRA, so that any content half fits "
                "any style half of the same base. Make LoRA of Halves joins two halves. "
                "Break-for-Make, Xu et al. 2024, arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "content half", "style half", "train lora"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs("Text encoder of the base, which encodes the prompts."),
                io.Combo.Input(
                    "role",
                    options=["content", "style"],
                    tooltip="Whether the pictures show one content or one style.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="Training pictures: about 4 of the content, or 1 to 3 in the style.",
                ),
                text_input(
                    "prompt",
                    "Description of the pictures, including the token. One text is used for all "
                    "pictures; a list has one text per picture.",
                    placeholder="a photo of snq teddybear",
                ),
                io.String.Input(
                    "token",
                    default="",
                    placeholder="snq",
                    tooltip="Trigger word, which the prompt must contain. Choose a rare word; it "
                    "is stored in the file, and content and style must not have the same.",
                ),
                text_input(
                    "auxiliary_prompts",
                    "Prompts for pictures of other contents (for a style) or in other styles (for "
                    "a content), one per line, three or more. Without auxiliary_images the base "
                    "draws each once. Without prompts the half may fit other halves less.",
                    placeholder="a teapot in sticker style",
                ),
                steps_input(
                    "Number of training steps. 0 is the default of 1000: the released style "
                    "script's for SDXL, ours for the others."
                ),
                rank_input(
                    "Rank of the LoRA. 0 is the default of 64 from the released scripts. Halves "
                    "fit together only with equal ranks."
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
                    tooltip="Multiplier of the learning rate for the partner half, which is "
                    "trained on the auxiliary pictures. 0 is the default of 0.1 from the released "
                    "scripts.",
                ),
                io.Combo.Input(
                    "gradients",
                    options=list(GRADIENTS),
                    default=HalfTrainer.gradients,
                    advanced=True,
                    tooltip="Whether the pictures train only the half and the auxiliary pictures "
                    "only its partner, as in the paper (isolated), or all pictures train both, as "
                    "in the released code (leaky).",
                ),
                io.Combo.Input(
                    "start",
                    options=["orthogonal", "released", "exact"],
                    default=HalfTrainer.start,
                    advanced=True,
                    tooltip="Initialisation of the frozen parts: an orthonormal basis in every "
                    "layer (orthogonal), only in square query, key and value layers as in the "
                    "released code (released), or with a product of exactly zero (exact).",
                ),
                io.Combo.Input(
                    "content_owns",
                    options=["down", "up"],
                    default=HalfTrainer.content_owns,
                    advanced=True,
                    tooltip="Part of the LoRA that contents own; styles own the other part. The "
                    "released code uses down, the paper's figure shows up. Halves fit together "
                    "only with equal values.",
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
                    tooltip="Your own auxiliary pictures instead of drawn ones, with one line of "
                    "auxiliary_prompts per picture or one line for all.",
                ),
                settings_input(),
            ],
            outputs=[
                HalfType.Output(
                    display_name="half", tooltip="Half for Make LoRA of Halves or Save Half."
                ),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The half as an ordinary LoRA, to apply it alone."
                ),
                io.LossMap.Output(
                    display_name="losses", tooltip="Loss curves loss, main and auxiliary."
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or return the result of an equal finished run."""
        trainer = read_request(HalfTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        half = output.loras[HALF]
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(half, half, output.losses, ui=display)


class Make(io.ComfyNode):
    """Makes an ordinary LoRA of a content and a style half."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheMake",
            display_name="Make LoRA of Halves",
            category="Pastiche/merge",
            description=(
                "Joins a content and a style half into one ordinary LoRA, optionally with a short "
                "joint training on the pictures of both. With several contents and styles it "
                "makes every combination. Break-for-Make, Xu et al. 2024, arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "merge halves", "join halves", "remake"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                HalfType.Input("contents", tooltip="One content half, or a list of them."),
                HalfType.Input("styles", tooltip="One style half, or a list of them."),
                strength_input(
                    "content_strength",
                    "Strength of the content in the result. Changing it does not train again.",
                ),
                strength_input(
                    "style_strength",
                    "Strength of the style in the result. Changing it does not train again.",
                ),
                steps_input(
                    "Number of steps of joint training; 0 joins the halves without it. The "
                    "released script takes up to 1000, and a few hundred balance content and "
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
                    "AdamW, as in the paper, does not favour the half with larger weights.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Base model of the halves, for joint training."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoder of the base, for joint training."
                ),
                io.Vae.Input("vae", optional=True, tooltip="VAE of the base, for joint training."),
                io.Image.Input(
                    "content_images",
                    optional=True,
                    tooltip="Pictures on which the content half was trained, for joint training.",
                ),
                text_input(
                    "content_prompt",
                    "Prompt with which the content half was trained, for joint training.",
                    optional=True,
                ),
                io.Image.Input(
                    "style_images",
                    optional=True,
                    tooltip="Pictures on which the style half was trained, for joint training.",
                ),
                text_input(
                    "style_prompt",
                    "Prompt with which the style half was trained, for joint training.",
                    optional=True,
                ),
                settings_input(),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    is_output_list=True,
                    tooltip="One ordinary LoRA for every combination of content and style.",
                ),
                io.LossMap.Output(
                    display_name="losses", tooltip="Loss curves loss, content and style."
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Join the halves, after joint training if there are steps."""
        trainer = read_request(MakeTrainer, inputs, cls.hidden.unique_id)
        loras, output = make_loras(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(loras, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainHalf, Make]
