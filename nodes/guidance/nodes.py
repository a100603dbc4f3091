"""Nodes that apply a style: its prompts, and style guidance on a model."""

# ComfyNode declares ``execute`` with **kwargs alone, though ComfyUI passes every input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from torch import Tensor

from ...training.files.lora_state import LoraState
from ..bridge.conditioning import Conditioning
from .apply import with_style_guidance
from .prompts import style_prompts
from .window import style_window


class ApplyStyleGuidance(io.ComfyNode):
    """Apply style guidance to a MODEL, for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyStyleGuidance",
            display_name="Apply Style Guidance",
            category="Pastiche/sample",
            description=(
                "Adds style guidance to every step of any sampler, on top of CFG: style scale "
                "times (prediction with style LoRA and style prompt minus prediction for the "
                "plain prompt). Pair Customization (Jones et al. 2024, arXiv:2405.01536), "
                "equation 10; several of these nodes in a row blend styles as in equation 11. "
                "The LoRA acts in extra batch rows only and does not change the model. The LoRA's "
                "text encoder layers are not used: Apply LoRA (Pastiche) puts them on a CLIP."
            ),
            search_aliases=[
                "style guidance",
                "pair customization",
                "style transfer",
                "apply style",
                "style lora",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base model; LoRAs already on it still act."),
                io.LoraModel.Input(
                    "style_lora",
                    tooltip=(
                        "LoRA of the style, made for this kind of model. It acts in the style's "
                        "batch rows only, without its text encoder layers."
                    ),
                ),
                io.Conditioning.Input(
                    "style",
                    tooltip=(
                        "The positive prompt with the style words. Only its text is used: masks, "
                        "areas and ControlNets are those of the positive prompt."
                    ),
                ),
                io.Float.Input(
                    "style_scale",
                    default=3.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "Scale of the style guidance; 0 gives the plain picture. The paper uses 3 "
                        "for subjects like the trained ones and 4 for others, at CFG 5. Lower it "
                        "if the training picture shows through."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip=(
                        "Fraction of the run before the style begins; a later start keeps more of "
                        "the plain picture's layout. In the paper the first 10 of 50 steps are "
                        "plain."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Fraction of the run after which the style stops; the paper uses 1.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the style LoRA in the style's rows; 1 is as trained.",
                ),
                io.String.Input(
                    "schedule",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        'Factors of style_scale over the run, such as "0:1, 0.5:0.3": fraction of '
                        "the run and factor, interpolated linearly. start_percent and end_percent "
                        "still apply."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Mask of the style: full effect in white areas, none in black ones.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the style, for KSampler, SamplerCustom or a guider.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        style_lora: LoraState,
        style: Conditioning,
        style_scale: float,
        start_percent: float,
        end_percent: float,
        lora_strength: float,
        schedule: str = "",
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        """Apply the style to a clone of the model."""
        window = style_window(style_scale, start_percent, end_percent, schedule)
        return io.NodeOutput(
            with_style_guidance(model, style_lora, style, window, lora_strength, mask)
        )


class StylePrompts(io.ComfyNode):
    """Encode one prompt with and without the style words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheStylePrompts",
            display_name="Style Prompts",
            category="Pastiche/sample",
            description=(
                "Encodes one prompt twice: as written, for the sampler's positive, and followed by "
                "the style words, for Apply Style Guidance. Pair Customization (Jones et "
                "al. 2024, arXiv:2405.01536), the prompts c and c_style of equation 10."
            ),
            search_aliases=["style prompt", "pair customization", "style words", "trigger words"],
            inputs=[
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Prompt for the picture, without the style words.",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    tooltip=(
                        'Words that name the style, such as "in digital art style". If empty, the '
                        "words with which the style LoRA was trained are used."
                    ),
                ),
                io.LoraModel.Input(
                    "style_lora",
                    optional=True,
                    tooltip="LoRA whose style words are used if style_words is empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="plain", tooltip="The prompt alone, for the sampler's positive."
                ),
                io.Conditioning.Output(
                    display_name="styled",
                    tooltip="The prompt with the style words, for Apply Style Guidance.",
                ),
                io.String.Output(
                    display_name="styled_prompt", tooltip="The text of the styled prompt."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: CLIP, prompt: str, style_words: str, style_lora: LoraState | None = None
    ) -> io.NodeOutput:
        """Encode both prompts."""
        return io.NodeOutput(*style_prompts(clip, prompt, style_words, style_lora))


NODES: list[type[io.ComfyNode]] = [ApplyStyleGuidance, StylePrompts]
