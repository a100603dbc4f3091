"""The node Half Sheet."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.drawing import SAMPLERS, SCHEDULERS
from ..bridge.inputs import read_inputs, seed_input, text_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import HalfType
from .sheet import SheetRequest, half_sheet


class HalfSheet(io.ComfyNode):
    """Draws every combination of content and style halves on one contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheHalfSheet",
            display_name="Half Sheet",
            category="Pastiche/sample",
            description=(
                "Joins every content half with every style half, draws a picture with each LoRA "
                "and arranges them on one sheet: contents in rows, styles in columns, all with "
                "the same noise. The LoRAs can be saved too. Break-for-Make, Xu et al. 2024, "
                "arXiv:2403.19456."
            ),
            search_aliases=[
                "contact sheet",
                "xy plot",
                "grid",
                "break for make",
                "b4m",
                "shelf of halves",
                "compare halves",
            ],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="Base model that the halves were trained on."),
                io.Clip.Input("clip", tooltip="Text encoder of the base, for the prompts."),
                io.Vae.Input("vae", tooltip="VAE of the base, which decodes the pictures."),
                HalfType.Input(
                    "contents",
                    tooltip="One content half or a list of them; each is a row of the sheet.",
                ),
                HalfType.Input(
                    "styles",
                    tooltip="One style half or a list of them; each is a column of the sheet.",
                ),
                io.String.Input(
                    "prompt",
                    default="a {content} in {style} style",
                    multiline=True,
                    tooltip="Prompt of all pictures. {content} and {style} are replaced by the "
                    "tokens of the row's and the column's half; either may be left out.",
                ),
                text_input("negative", "Negative prompt of all pictures."),
                io.Float.Input(
                    "content_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Multiplier of the part that the content halves own. Lower it if the "
                    "contents weaken the styles.",
                ),
                io.Float.Input(
                    "style_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Multiplier of the part that the style halves own. Lower it if the "
                    "styles weaken the contents.",
                ),
                seed_input("Seed of the noise, which is the same for every picture of the sheet."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Sampling steps of each picture, as in KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Scale of classifier-free guidance. 5 to 7 is common; use 1 for a "
                    "distilled model such as Flux.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLERS,
                    default="euler",
                    tooltip="Sampler of all pictures, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=SCHEDULERS,
                    default="normal",
                    tooltip="Scheduler of all pictures, as in KSampler.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Width of each picture in pixels. It must be a multiple of 8, or of "
                    "16 for SD3, Flux and other transformers.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Height of each picture in pixels. It must be a multiple of 8, or of "
                    "16 for SD3, Flux and other transformers.",
                ),
                io.Boolean.Input(
                    "labels",
                    default=True,
                    tooltip="Whether rows and columns have labels in the margin.",
                ),
                text_input(
                    "content_words",
                    "Words for {content} and for the label, one line per content. For an empty "
                    "line the half's token is used.",
                    optional=True,
                ),
                text_input(
                    "style_words",
                    "Words for {style} and for the label, one line per style. For an empty line "
                    "the half's token is used.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="Contact sheet of all pictures."),
                io.Image.Output(
                    display_name="pictures",
                    tooltip="Batch of the pictures: first the first content in every style, then "
                    "the next content.",
                ),
                io.LoraModel.Output(
                    display_name="loras",
                    is_output_list=True,
                    tooltip="LoRA of each picture, in the same order.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Join the halves and draw the sheet."""
        result = half_sheet(SheetRequest(**read_inputs(SheetRequest, inputs)))
        display = node_display(cls.hidden.unique_id, [result.sheet], result.text)
        return io.NodeOutput(result.sheet, result.pictures, result.loras, ui=display)


NODES: list[type[io.ComfyNode]] = [HalfSheet]
