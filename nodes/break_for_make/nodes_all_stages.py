"""The node that takes all stages of Break-for-Make at once."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training import TrainingSettings
from ..bridge.inputs import lines_of, only, rate_input, seed_input, settings_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import HalfType
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
                io.Model.Input("model", tooltip="The base to learn on; it is not changed."),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the prompts."),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
                io.Image.Input(
                    "content_images", tooltip="About four pictures of one thing, as it is."
                ),
                io.String.Input(
                    "content_prompt",
                    default="",
                    multiline=True,
                    placeholder="a photo of snq teddybear",
                    tooltip="What they show, with the content's token. One text serves all; a "
                    "list gives each its own.",
                ),
                io.String.Input(
                    "content_token",
                    default="",
                    placeholder="snq",
                    tooltip="The rare word that will call the content up.",
                ),
                io.Image.Input("style_images", tooltip="One to three pictures in one style."),
                io.String.Input(
                    "style_prompt",
                    default="",
                    multiline=True,
                    placeholder="a woman walking a dog in w@z flat cartoon illustration style",
                    tooltip="What they show, with the style's token. One text serves all; a list "
                    "gives each its own.",
                ),
                io.String.Input(
                    "style_token",
                    default="",
                    placeholder="w@z",
                    tooltip="The rare word that will call the style up.",
                ),
                io.String.Input(
                    "other_styles",
                    default="",
                    multiline=True,
                    placeholder="a teapot in sticker style",
                    tooltip="Pictures in other styles, one per line, three or more; the base "
                    "draws each once. They keep the content free of any one style.",
                ),
                io.String.Input(
                    "other_contents",
                    default="",
                    multiline=True,
                    placeholder="a photo of a teapot",
                    tooltip="Pictures of other contents, one per line, three or more; the base "
                    "draws each once. They keep the style free of any one content.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Training steps of each half. 0 is the default of 1000: the released "
                    "style script's for SDXL, ours for the others.",
                ),
                io.Int.Input(
                    "make_steps",
                    default=-1,
                    min=-1,
                    max=1_000_000,
                    tooltip="Steps of the joint training at the end. -1 is the default of 1000, "
                    "the released script's; 0 joins the halves as they are.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Size of the LoRA. 0 is the default of 64, the released scripts'.",
                ),
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the default of 0.0001, the released scripts'.",
                ),
                seed_input("Seed for all noise, noise levels and sampled pictures."),
                io.String.Input(
                    "run_name",
                    default="my_content_and_style",
                    tooltip="Name of the runs' folders below output/pastiche.",
                ),
                io.Float.Input(
                    "content_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the content shows; never trains anew.",
                ),
                io.Float.Input(
                    "style_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the style shows; never trains anew.",
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
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        content_images: list[Any],
        content_prompt: list[str],
        content_token: list[str],
        style_images: list[Any],
        style_prompt: list[str],
        style_token: list[str],
        other_styles: list[str],
        other_contents: list[str],
        steps: list[int],
        make_steps: list[int],
        rank: list[int],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        content_strength: list[float],
        style_strength: list[float],
        settings: list[TrainingSettings] | None = None,
    ) -> io.NodeOutput:
        """Train, or take equal runs' results."""
        result = train_b4m(
            B4MRequest(
                model=only("model", model),
                clip=only("clip", clip),
                vae=only("vae", vae),
                content_images=content_images,
                content_prompts=content_prompt,
                content_token=only("content_token", content_token),
                other_styles=lines_of(other_styles),
                style_images=style_images,
                style_prompts=style_prompt,
                style_token=only("style_token", style_token),
                other_contents=lines_of(other_contents),
                steps=only("steps", steps),
                make_steps=only("make_steps", make_steps),
                rank=only("rank", rank),
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                content_strength=only("content_strength", content_strength),
                style_strength=only("style_strength", style_strength),
                settings=only("settings", settings or [TrainingSettings()]),
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.lora, result.content, result.style, result.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainB4M]
