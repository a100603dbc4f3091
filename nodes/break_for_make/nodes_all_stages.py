"""The node that takes all stages of Break-for-Make at once."""

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
    """Content and style pictures to one LoRA, and its two halves."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainB4M",
            display_name="Train Content and Style (B4M)",
            category="Pastiche/train",
            description=(
                "Learns a content from some pictures and a style from others, apart, and makes "
                "one LoRA of both: all stages of Break-for-Make at once. Its halves fit every "
                "other half of the same base. Xu et al. 2024, arXiv:2403.19456."
            ),
            search_aliases=["break for make", "b4m", "content and style", "train lora"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs("The base's text encoder, for the prompts."),
                io.Image.Input(
                    "content_images", tooltip="About four pictures of one thing, as it is."
                ),
                text_input(
                    "content_prompt",
                    "What they show, with the content's token. One text serves all; a "
                    "list gives each its own.",
                    placeholder="a photo of snq teddybear",
                ),
                io.String.Input(
                    "content_token",
                    default="",
                    placeholder="snq",
                    tooltip="The rare word that will call the content up.",
                ),
                io.Image.Input("style_images", tooltip="One to three pictures in one style."),
                text_input(
                    "style_prompt",
                    "What they show, with the style's token. One text serves all; a list "
                    "gives each its own.",
                    placeholder="a woman walking a dog in w@z flat cartoon illustration style",
                ),
                io.String.Input(
                    "style_token",
                    default="",
                    placeholder="w@z",
                    tooltip="The rare word that will call the style up.",
                ),
                text_input(
                    "other_styles",
                    "Pictures in other styles, one per line, three or more; the base "
                    "draws each once. They keep the content free of any one style.",
                    placeholder="a teapot in sticker style",
                ),
                text_input(
                    "other_contents",
                    "Pictures of other contents, one per line, three or more; the base "
                    "draws each once. They keep the style free of any one content.",
                    placeholder="a photo of a teapot",
                ),
                steps_input(
                    "Training steps of each half. 0 is the default of 1000: the released "
                    "style script's for SDXL, ours for the others."
                ),
                steps_input(
                    "Steps of the joint training at the end. -1 is the default of 1000, "
                    "the released script's; 0 joins the halves as they are.",
                    name="make_steps",
                    default=-1,
                ),
                rank_input("Size of the LoRA. 0 is the default of 64, the released scripts'."),
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the default of 0.0001, the released scripts'.",
                ),
                seed_input("Seed for all noise, noise levels and sampled pictures."),
                run_name_input("my_content_and_style", "runs' folders"),
                strength_input(
                    "content_strength", "How strongly the content shows; never trains anew."
                ),
                strength_input(
                    "style_strength", "How strongly the style shows; never trains anew."
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
                    tooltip="Curve loss over all stages, and the curves of each stage.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or take equal runs' results."""
        request = read_request(B4MRequest, inputs, cls.hidden.unique_id)
        lora, output = train_b4m(request)
        display = node_display(request.node_id, output.pictures, output.text)
        halves = (output.loras["content"], output.loras["style"])
        return io.NodeOutput(lora, *halves, output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainB4M]
