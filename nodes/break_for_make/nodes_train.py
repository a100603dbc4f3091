"""Nodes that train Break-for-Make's halves and make LoRAs of them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training import LoraState, TrainingSettings
from ...training.recipes.break_for_make import GRADIENTS
from ...training.settings import OPTIMIZERS
from ..bridge.inputs import lines_of, only, rate_input, seed_input, settings_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import LARGEST_SEED, HalfType
from .half_plan import HalfRequest
from .make import make_loras
from .make_plan import MakeRequest
from .train_half import train_half

_SEED = "Seed for all noise, noise levels and sampled pictures; the same seed repeats the run."
_STRENGTH: dict[str, Any] = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}


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
                io.Model.Input("model", tooltip="The base to learn on; it is not changed."),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the prompts."),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
                io.Combo.Input(
                    "role",
                    options=["content", "style"],
                    tooltip="Whether the pictures show one content or one style.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the content (about 4) or in the style (1 to 3).",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    placeholder="a photo of snq teddybear",
                    tooltip="What the pictures show, with the token. One text serves all; a list "
                    "gives each its own.",
                ),
                io.String.Input(
                    "token",
                    default="",
                    placeholder="snq",
                    tooltip="The rare word of the prompt that will call the half up. It is kept "
                    "in the file, and content and style must not share one.",
                ),
                io.String.Input(
                    "auxiliary_prompts",
                    default="",
                    multiline=True,
                    placeholder="a teapot in sticker style",
                    tooltip="Pictures of other contents for a style, in other styles for a "
                    "content, one per line; three or more. Without auxiliary_images the base "
                    "draws each once. Empty: none, and the half may fit others less.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Training steps. 0 is the default of 1000: the released style "
                    "script's for SDXL, ours for the others.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Size of the LoRA. 0 is the default of 64, the released scripts'. "
                    "Halves that are to fit need the same.",
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate of the part that the half owns. 0 is the default of 0.0001, "
                    "which the released scripts use.",
                ),
                seed_input(_SEED),
                io.String.Input(
                    "run_name",
                    default="my_half",
                    tooltip="Name of the run's folder below output/pastiche.",
                ),
                io.Float.Input(
                    "partner_rate",
                    default=0.0,
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
                    default="isolated",
                    advanced=True,
                    tooltip="isolated: the pictures move the half alone, the auxiliary ones its "
                    "partner alone, as the paper means it. leaky: both reach both, as in the "
                    "released code.",
                ),
                io.Combo.Input(
                    "start",
                    options=["orthogonal", "released", "exact"],
                    default="orthogonal",
                    advanced=True,
                    tooltip="How the frozen parts are drawn: one orthonormal basis at every "
                    "layer; at square query, key and value layers alone, as in the released "
                    "code; or with a product of exactly nothing.",
                ),
                io.Combo.Input(
                    "content_owns",
                    options=["down", "up"],
                    default="down",
                    advanced=True,
                    tooltip="The part that contents own; styles own the other. down is the "
                    "released code's; the paper's figure shows up.",
                ),
                io.Int.Input(
                    "basis_seed",
                    default=0,
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
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        role: list[Any],
        images: list[Any],
        prompt: list[str],
        token: list[str],
        auxiliary_prompts: list[str],
        steps: list[int],
        rank: list[int],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        partner_rate: list[float],
        gradients: list[str],
        start: list[Any],
        content_owns: list[Any],
        basis_seed: list[int],
        auxiliary_images: list[Any] | None = None,
        settings: list[TrainingSettings] | None = None,
    ) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        result = train_half(
            HalfRequest(
                model=only("model", model),
                clip=only("clip", clip),
                vae=only("vae", vae),
                role=only("role", role),
                images=images,
                prompts=prompt,
                token=only("token", token),
                auxiliary_images=auxiliary_images or (),
                auxiliary_prompts=lines_of(auxiliary_prompts),
                steps=only("steps", steps),
                rank=only("rank", rank),
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                partner_rate=only("partner_rate", partner_rate),
                gradients=only("gradients", gradients),
                start=only("start", start),
                content_owns=only("content_owns", content_owns),
                basis_seed=only("basis_seed", basis_seed),
                settings=only("settings", settings or [TrainingSettings()]),
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.half, result.half, result.losses, ui=display)


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
                io.Float.Input(
                    "content_strength",
                    **_STRENGTH,
                    tooltip="How strongly the content shows; never trains anew.",
                ),
                io.Float.Input(
                    "style_strength",
                    **_STRENGTH,
                    tooltip="How strongly the style shows; never trains anew.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps of joint training; 0 joins the halves without it. The released "
                    "script allows 1000 and keeps every 50th: a few hundred balance content and "
                    "style. Joint training needs all inputs below.",
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate of the joint training. 0 is the default of 0.0001, which the "
                    "released script uses.",
                ),
                seed_input(_SEED),
                io.String.Input(
                    "run_name",
                    default="my_lora",
                    tooltip="Name of the run's folder below output/pastiche.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default="Scaled AdamW",
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
                io.String.Input(
                    "content_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt that the content half was trained with.",
                ),
                io.Image.Input(
                    "style_images",
                    optional=True,
                    tooltip="The pictures that the style half was trained on.",
                ),
                io.String.Input(
                    "style_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt that the style half was trained with.",
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
    def execute(
        cls,
        contents: list[LoraState],
        styles: list[LoraState],
        content_strength: list[float],
        style_strength: list[float],
        steps: list[int],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        optimizer: list[str],
        model: list[Any] | None = None,
        clip: list[Any] | None = None,
        vae: list[Any] | None = None,
        content_images: list[Any] | None = None,
        content_prompt: list[str] | None = None,
        style_images: list[Any] | None = None,
        style_prompt: list[str] | None = None,
        settings: list[TrainingSettings] | None = None,
    ) -> io.NodeOutput:
        """Join the halves, and train them together where steps are given."""
        result = make_loras(
            MakeRequest(
                contents=contents,
                styles=styles,
                content_strength=only("content_strength", content_strength),
                style_strength=only("style_strength", style_strength),
                steps=only("steps", steps),
                model=only("model", model or [None]),
                clip=only("clip", clip or [None]),
                vae=only("vae", vae or [None]),
                content_images=content_images or (),
                content_prompts=content_prompt or [""],
                style_images=style_images or (),
                style_prompts=style_prompt or [""],
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                optimizer=only("optimizer", optimizer),
                settings=only("settings", settings or [TrainingSettings()]),
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, [], result.text)
        return io.NodeOutput(result.loras, result.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainHalf, Make]
