"""Nodes that say what is in regions, and put regions on models and ControlNets."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.inputs import concepts_input, connected_concepts, text_input
from ..bridge.socket_types import RegionPromptsType, RegionsType
from .layout.sets import KEEPS_A_CELL, RULES
from .sampling.apply import with_regions
from .sampling.control import weighted_control
from .sampling.loras import AREA, TOKENLESS
from .sampling.prompts import with_region_prompt
from .sampling.run import MEAN, POOLED


class RegionPrompt(io.ComfyNode):
    """What is said in one region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionPrompt",
            display_name="Region Prompt",
            category="Pastiche/sample",
            description=(
                "Says what is in one region: its words, its negative words, and a LoRA or concepts "
                "that act there alone. Chain one for each region."
            ),
            search_aliases=[
                "regional prompt",
                "lora per region",
                "area prompt",
                "attention couple",
                "mix of show",
            ],
            inputs=[
                io.String.Input("region", default="", tooltip="The region's name."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "What is in the region, as a whole prompt of its own; repeat the scene's "
                        "words. Empty: the global prompt holds there."
                    ),
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Its negative prompt. Empty: the global one holds there.",
                ),
                io.String.Input(
                    "common_words",
                    default="",
                    tooltip=(
                        "Words before every region's text, such as the scene or the medium. Set "
                        "them on the first of these nodes; those after it take them over."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the LoRA and of the concepts' LoRAs in this region.",
                ),
                RegionPromptsType.Input(
                    "region_prompts",
                    optional=True,
                    tooltip="From the Region Prompt of another region.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Reads the text, under the text encoder part of the region's LoRA.",
                ),
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="Acts in this region alone: an object, a person or a style.",
                ),
                concepts_input(
                    "Named in the text as <name>.",
                    "Trained concepts that act in this region alone.",
                    least=0,
                ),
                io.Conditioning.Input(
                    "positive_conditioning",
                    optional=True,
                    tooltip="A prompt that is encoded already, in place of the text.",
                ),
                io.Conditioning.Input(
                    "negative_conditioning",
                    optional=True,
                    tooltip="Likewise in place of the negative text.",
                ),
            ],
            outputs=[
                RegionPromptsType.Output(
                    display_name="region_prompts",
                    tooltip="For the next Region Prompt, and for Apply Regional Attention.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        region,
        text,
        negative,
        common_words,
        strength,
        region_prompts=None,
        clip=None,
        lora=None,
        concepts=None,
        positive_conditioning=None,
        negative_conditioning=None,
    ) -> io.NodeOutput:
        """Encode the region's prompts."""
        prompts = with_region_prompt(
            region_prompts,
            region=region,
            text=text,
            negative=negative,
            common_words=common_words,
            strength=strength,
            clip=clip,
            lora=lora,
            concepts=connected_concepts(concepts),
            positive_conditioning=positive_conditioning,
            negative_conditioning=negative_conditioning,
        )
        return io.NodeOutput(prompts)


class ApplyRegionalAttention(io.ComfyNode):
    """Regions on a MODEL, for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyRegionalAttention",
            display_name="Apply Regional Attention",
            category="Pastiche/sample",
            description=(
                "Lets each part of the picture hear its own region's words and its own LoRA, in "
                "one run of any sampler: the mean where regions overlap, the sampler's prompt "
                "outside of them. Mix-of-Show (Gu et al. 2023, arXiv:2305.18292), section 3.3."
            ),
            search_aliases=[
                "regional prompt",
                "regional attention",
                "lora per region",
                "attention couple",
                "area composition",
                "mix of show",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base; LoRAs on it act everywhere."),
                RegionsType.Input("regions", tooltip="Where they lie."),
                RegionPromptsType.Input(
                    "region_prompts",
                    optional=True,
                    tooltip="What is said in them; a region without hears the global prompt.",
                ),
                io.Combo.Input(
                    "cells",
                    options=list(RULES),
                    default=KEEPS_A_CELL,
                    tooltip=(
                        "How boxes become cells of coarse layers: those whose centre they hold, at "
                        "least one; or the paper's whole cells, where a small box may have none."
                    ),
                ),
                io.Combo.Input(
                    "pooled",
                    options=list(POOLED),
                    default=MEAN,
                    tooltip=(
                        "For models with one vector for the whole prompt (SDXL, SD3, Flux): the "
                        "mean of all prompts by the area they hold, or the global prompt's."
                    ),
                ),
                io.Boolean.Input(
                    "isolate",
                    default=False,
                    tooltip=(
                        "Keeps what other parts of the picture see of a region as the base would "
                        "have it: a region's LoRA then leaks less, and fits in less."
                    ),
                ),
                io.Combo.Input(
                    "without_tokens",
                    options=list(TOKENLESS),
                    default=AREA,
                    advanced=True,
                    tooltip=(
                        "What a region's LoRA does in layers that see no place of the picture, such "
                        "as those of the noise level: act by the region's area, or not at all."
                    ),
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
        cls, model, regions, region_prompts=None, *, cells, pooled, isolate, without_tokens
    ) -> io.NodeOutput:
        """Put the regions on a clone of the model."""
        return io.NodeOutput(
            with_regions(model, regions, region_prompts, cells, pooled, isolate, without_tokens)
        )


class RegionalControlWeight(io.ComfyNode):
    """A ControlNet whose strength differs from region to region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionalControlWeight",
            display_name="Regional Control Weight",
            category="Pastiche/sample",
            description=(
                "Gives a ControlNet or T2I-Adapter a strength for each region, before any Apply "
                "ControlNet: later regions overwrite earlier ones. Mix-of-Show (Gu et al. 2023, "
                "arXiv:2305.18292), section 3.3."
            ),
            search_aliases=[
                "controlnet mask",
                "regional controlnet",
                "control per region",
                "t2i adapter",
                "mix of show",
            ],
            inputs=[
                io.ControlNet.Input("control_net", tooltip="A ControlNet or a T2I-Adapter."),
                RegionsType.Input("regions", tooltip="Where the strengths hold."),
                text_input(
                    "strengths",
                    "A name and a number on each line, such as: cat 0.8. Regions that are not "
                    "named have the strength inside.",
                ),
                io.Float.Input(
                    "inside",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength in regions that are not named.",
                ),
                io.Float.Input(
                    "outside",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength where there is no region.",
                ),
                io.Combo.Input(
                    "cells",
                    options=list(RULES),
                    default=KEEPS_A_CELL,
                    tooltip="How boxes become cells: those whose centre they hold, or whole ones.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net",
                    tooltip="For Apply ControlNet, whose strength multiplies these.",
                )
            ],
        )

    @classmethod
    def execute(cls, control_net, regions, strengths, inside, outside, cells) -> io.NodeOutput:
        """Weight a copy of the ControlNet."""
        weighted = weighted_control(control_net, regions, strengths, inside, outside, cells)
        return io.NodeOutput(weighted)


NODES: list[type[io.ComfyNode]] = [RegionPrompt, ApplyRegionalAttention, RegionalControlWeight]
