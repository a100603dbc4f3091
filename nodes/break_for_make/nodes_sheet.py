"""The node that draws a sheet of halves in all combinations."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.drawing import SAMPLERS, SCHEDULERS
from ..bridge.inputs import read_inputs, seed_input, text_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import HalfType
from .sheet import SheetRequest, half_sheet


class HalfSheet(io.ComfyNode):
    """Every content half in every style half, as pictures on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheHalfSheet",
            display_name="Half Sheet",
            category="Pastiche/sample",
            description=(
                "Makes every content half with every style half, draws a picture with each, and "
                "lays them out on one sheet: contents in rows, styles in columns, all with the "
                "same noise. The LoRAs come out too, ready to save. Break-for-Make, Xu et al. "
                "2024, arXiv:2403.19456."
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
                io.Model.Input("model", tooltip="The base that the halves were trained on."),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the prompts."),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
                HalfType.Input(
                    "contents",
                    tooltip="One content half or a list of them; each becomes a row.",
                ),
                HalfType.Input(
                    "styles",
                    tooltip="One style half or a list of them; each becomes a column.",
                ),
                io.String.Input(
                    "prompt",
                    default="a {content} in {style} style",
                    multiline=True,
                    tooltip="{content} and {style} become the token of the row's and of the "
                    "column's half. Either may be left out.",
                ),
                text_input("negative", "What every picture is guided away from."),
                io.Float.Input(
                    "content_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Multiplies what each content half owns. Lower it if contents spoil "
                    "the styles.",
                ),
                io.Float.Input(
                    "style_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Multiplies what each style half owns. Lower it if styles spoil the "
                    "contents.",
                ),
                seed_input("Seed of the noise, which is the same for every picture of the sheet."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    tooltip="Sampling steps of each picture, as in core's KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance by the prompt: 5 to 7, and 1 for a distilled model such as "
                    "Flux.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLERS,
                    default="euler",
                    tooltip="As in core's KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=SCHEDULERS,
                    default="normal",
                    tooltip="As in core's KSampler.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Width of each picture in pixels: a multiple of 8, or of 16 for SD3, "
                    "Flux and other transformers.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Height of each picture in pixels: a multiple of 8, or of 16 for SD3, "
                    "Flux and other transformers.",
                ),
                io.Boolean.Input(
                    "labels",
                    default=True,
                    tooltip="Name rows and columns on the margin; off leaves the margin out.",
                ),
                text_input(
                    "content_words",
                    "What stands in for {content} and on the label, one line per content. "
                    "Empty, or an empty line: the half's token.",
                    optional=True,
                ),
                text_input(
                    "style_words",
                    "What stands in for {style} and on the label, one line per style. "
                    "Empty, or an empty line: the half's token.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All pictures on one, named."),
                io.Image.Output(
                    display_name="pictures",
                    tooltip="The pictures alone, a batch: the first content in every style, then "
                    "the next.",
                ),
                io.LoraModel.Output(
                    display_name="loras",
                    is_output_list=True,
                    tooltip="What drew them, an ordinary LoRA each, in the same order.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Make the LoRAs and draw the sheet."""
        drawn = half_sheet(SheetRequest(**read_inputs(SheetRequest, inputs)))
        display = node_display(cls.hidden.unique_id, [drawn.sheet], drawn.text)
        return io.NodeOutput(drawn.sheet, drawn.pictures, drawn.loras, ui=display)


NODES: list[type[io.ComfyNode]] = [HalfSheet]
