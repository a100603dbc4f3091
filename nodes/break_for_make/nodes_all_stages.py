"""The node Train Content and Style, which runs all stages of Break-for-Make."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

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
from ..bridge.socket_types import HalfType
from ..trainer.request import read_request
from .all_stages import B4MRequest, train_b4m


class TrainB4M(io.ComfyNode):
    """Trains one LoRA, and its two halves, from content and style pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheTrainB4M",
            display_name="Train Content and Style (B4M)",
            category="Pastiche/train",
            description=(
                "Trains a content from some pictures and a style from others, and makes one LoRA "
                "of both: all stages of Break-for-Make in one node. The halves can also be "
                "combined with other halves of the same base. Xu et al. 2024, arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "content and style", "train lora"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs("Text encoder of the base, which encodes the prompts."),
                io.Image.Input(
                    "content_images",
                    tooltip="About four pictures of one subject, without a special style.",
                ),
                text_input(
                    "content_prompt",
                    "Description of the content pictures, including content_token. One text is "
                    "used for all pictures; a list has one text per picture.",
                    placeholder="a photo of snq teddybear",
                ),
                io.String.Input(
                    "content_token",
                    default="",
                    placeholder="snq",
                    tooltip="Trigger word of the content. Choose a rare word.",
                ),
                io.Image.Input("style_images", tooltip="One to three pictures in the same style."),
                text_input(
                    "style_prompt",
                    "Description of the style pictures, including style_token. One text is used "
                    "for all pictures; a list has one text per picture.",
                    placeholder="a woman walking a dog in w@z flat cartoon illustration style",
                ),
                io.String.Input(
                    "style_token",
                    default="",
                    placeholder="w@z",
                    tooltip="Trigger word of the style. Choose a rare word.",
                ),
                text_input(
                    "other_styles",
                    "Prompts for pictures in other styles, one per line, three or more; the base "
                    "draws each once. They keep the content independent of a style.",
                    placeholder="a teapot in sticker style",
                ),
                text_input(
                    "other_contents",
                    "Prompts for pictures of other contents, one per line, three or more; the "
                    "base draws each once. They keep the style independent of a content.",
                    placeholder="a photo of a teapot",
                ),
                steps_input(
                    "Number of training steps of each half. 0 is the default of 1000: the released "
                    "style script's for SDXL, ours for the others."
                ),
                steps_input(
                    "Number of steps of the joint training at the end. -1 is the default of 1000 "
                    "from the released script; 0 joins the halves without joint training.",
                    name="make_steps",
                    default=-1,
                ),
                rank_input("Rank of the LoRA. 0 is the default of 64 from the released scripts."),
                rate_input(
                    "learning_rate",
                    "Learning rate. 0 is the default of 0.0001 from the released scripts.",
                ),
                seed_input("Seed for all noise, noise levels and sampled pictures."),
                run_name_input("my_content_and_style", "runs' folders"),
                strength_input(
                    "content_strength",
                    "Strength of the content in the result. Changing it does not train again.",
                ),
                strength_input(
                    "style_strength",
                    "Strength of the style in the result. Changing it does not train again.",
                ),
                settings_input(),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="Content and style in one ordinary LoRA."
                ),
                HalfType.Output(display_name="content", tooltip="The content half."),
                HalfType.Output(display_name="style", tooltip="The style half."),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Loss curve loss over all stages, and the curves of each stage.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or return the results of equal finished runs."""
        request = read_request(B4MRequest, inputs, cls.hidden.unique_id)
        lora, output = train_b4m(request)
        display = node_display(request.node_id, output.pictures, output.text)
        halves = (output.loras["content"], output.loras["style"])
        return io.NodeOutput(lora, *halves, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainB4M]
