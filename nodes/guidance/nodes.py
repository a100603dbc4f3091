"""Nodes that paint with a style: its prompts, and its guidance on a model."""

from __future__ import annotations

from comfy_api.latest import io

from .apply import with_style_guidance
from .prompts import style_prompts
from .window import style_window


class ApplyStyleGuidance(io.ComfyNode):
    """A style on a MODEL, for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyStyleGuidance",
            display_name="Apply Style Guidance",
            category="Pastiche/sample",
            description=(
                "Adds the style's direction to every step of any sampler, on top of CFG: style "
                "scale times (prediction with style LoRA and style prompt minus prediction for "
                "the plain prompt). Pair Customization (Jones et al. 2024, arXiv:2405.01536), "
                "equation 10; several of these nodes in a row blend styles as in equation 11. "
                "The LoRA acts in these extra rows only and leaves the model as it is. A text "
                "encoder part of the LoRA is left out: Apply LoRA (Pastiche) puts it on a CLIP."
            ),
            search_aliases=[
                "style guidance",
                "pair customization",
                "style transfer",
                "apply style",
                "style lora",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model; LoRAs already on it stay part of the picture."
                ),
                io.LoraModel.Input(
                    "style_lora",
                    tooltip=(
                        "The style, made for this kind of model. It acts in the style's rows "
                        "only; its text encoder layers, if any, are left out."
                    ),
                ),
                io.Conditioning.Input(
                    "style",
                    tooltip=(
                        "The positive prompt with the style words. Only its text counts: masks, "
                        "areas, ControlNets and the like are the positive prompt's."
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
                        "How strongly the style pulls. 0 is the plain picture; the paper uses 3 "
                        "for things like the trained ones and 4 for others, at CFG 5. Lower it "
                        "when the training picture shows through."
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
                        "Part of the run before the style sets in: later keeps more of the plain "
                        "picture's layout. The paper's first 10 of 50 steps are plain."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Part of the run after which the style stops; 1 is the paper's.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the style LoRA in the style's rows; 1 as trained.",
                ),
                io.String.Input(
                    "schedule",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        'Multiplies style_scale over the run, for example "0:1, 0.5:0.3": percent '
                        "of the run and factor, linear between and flat outside. start_percent "
                        "and end_percent still bound it."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the style acts: white full, black not at all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="For KSampler, SamplerCustom or a guider, as any other model.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        style_lora,
        style,
        style_scale,
        start_percent,
        end_percent,
        lora_strength,
        schedule="",
        mask=None,
    ) -> io.NodeOutput:
        """Put the style on a clone of the model."""
        window = style_window(style_scale, start_percent, end_percent, schedule)
        return io.NodeOutput(
            with_style_guidance(model, style_lora, style, window, lora_strength, mask)
        )


class StylePrompts(io.ComfyNode):
    """One prompt, plain and with the style words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheStylePrompts",
            display_name="Style Prompts",
            category="Pastiche/sample",
            description=(
                "Encodes one prompt twice: as written, for the sampler's positive, and with the "
                "style words behind it, for Apply Style Guidance. Pair Customization (Jones et "
                "al. 2024, arXiv:2405.01536), the prompts c and c_style of equation 10."
            ),
            search_aliases=["style prompt", "pair customization", "style words", "trigger words"],
            inputs=[
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to paint, without the style words.",
                ),
                io.String.Input(
                    "style_words",
                    default="",
                    tooltip=(
                        'What names the style, such as "in digital art style"; left empty, the '
                        "words that the style LoRA was trained with."
                    ),
                ),
                io.LoraModel.Input(
                    "style_lora",
                    optional=True,
                    tooltip="Its style words are used where style_words is empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="plain", tooltip="The prompt alone: the sampler's positive."
                ),
                io.Conditioning.Output(
                    display_name="styled",
                    tooltip="The prompt with the style words: for Apply Style Guidance.",
                ),
                io.String.Output(
                    display_name="styled_prompt", tooltip="The text of the styled prompt."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, prompt, style_words, style_lora=None) -> io.NodeOutput:
        """Encode both prompts."""
        return io.NodeOutput(*style_prompts(clip, prompt, style_words, style_lora))


NODES: list[type[io.ComfyNode]] = [ApplyStyleGuidance, StylePrompts]
