"""Nodes that give regions their prompts and apply regions to models and ControlNets."""

# ComfyNode declares ``execute`` with **kwargs alone, though ComfyUI passes every input by name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfy.controlnet import ControlNet, T2IAdapter
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ...lora_ops import Region
from ...training.files.concept import Concept
from ...training.files.lora_state import LoraState
from ..bridge.conditioning import Conditioning
from ..bridge.inputs import concepts_input, connected_concepts, text_input
from ..bridge.socket_types import RegionPromptsType, RegionsType
from .layout.sets import CELL_RULES, KEEPS_A_CELL
from .sampling.apply import with_regions
from .sampling.control import weighted_control
from .sampling.loras import AREA, TOKENLESS
from .sampling.prompts import RegionPrompts, with_region_prompt
from .sampling.run import MEAN, POOLED


class RegionPrompt(io.ComfyNode):
    """Set the prompt and the LoRAs of one region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionPrompt",
            display_name="Region Prompt",
            category="Pastiche/sample",
            description=(
                "Sets the prompt of one region, its negative prompt, and a LoRA or concepts that "
                "act in this region only. Chain one of these nodes for each region."
            ),
            search_aliases=[
                "regional prompt",
                "lora per region",
                "area prompt",
                "attention couple",
                "mix of show",
            ],
            inputs=[
                io.String.Input("region", default="", tooltip="Name of the region, as in Regions."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "Complete prompt of the region; repeat the words of the scene. Leave empty "
                        "to use the global prompt."
                    ),
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Negative prompt of the region. Leave empty to use the global one.",
                ),
                io.String.Input(
                    "common_words",
                    default="",
                    tooltip=(
                        "Words before every region's text, such as the scene or the medium. Set "
                        "them on the first of these nodes; the next ones use them too."
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
                    tooltip="Prompts of other regions, from another Region Prompt.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the texts; the region's LoRA is applied to it.",
                ),
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="LoRA that acts in this region only: an object, a person or a style.",
                ),
                concepts_input(
                    "A trained concept, named in the text as <name>.",
                    "Trained concepts that act in this region only.",
                    least=0,
                ),
                io.Conditioning.Input(
                    "positive_conditioning",
                    optional=True,
                    tooltip="Encoded prompt that replaces the text.",
                ),
                io.Conditioning.Input(
                    "negative_conditioning",
                    optional=True,
                    tooltip="Encoded prompt that replaces the negative text.",
                ),
            ],
            outputs=[
                RegionPromptsType.Output(
                    display_name="region_prompts",
                    tooltip="All prompts, for another Region Prompt or Apply Regional Attention.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        region: str,
        text: str,
        negative: str,
        common_words: str,
        strength: float,
        region_prompts: RegionPrompts | None = None,
        clip: CLIP | None = None,
        lora: LoraState | None = None,
        concepts: Mapping[str, Sequence[Concept]] | None = None,
        positive_conditioning: Conditioning | None = None,
        negative_conditioning: Conditioning | None = None,
    ) -> io.NodeOutput:
        """Encode the prompts of the region."""
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
    """Apply regions to a MODEL, for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyRegionalAttention",
            display_name="Apply Regional Attention",
            category="Pastiche/sample",
            description=(
                "Applies the prompt and the LoRA of each region to its part of the picture, in one "
                "run of any sampler. Overlapping regions are averaged; outside of all regions the "
                "sampler's prompt is used. Mix-of-Show (Gu et al. 2023, arXiv:2305.18292), section "
                "3.3."
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
                io.Model.Input(
                    "model", tooltip="The base model; LoRAs already on it act everywhere."
                ),
                RegionsType.Input("regions", tooltip="Regions of the picture."),
                RegionPromptsType.Input(
                    "region_prompts",
                    optional=True,
                    tooltip="Prompts of the regions; a region without one uses the global prompt.",
                ),
                io.Combo.Input(
                    "cells",
                    options=list(CELL_RULES),
                    default=KEEPS_A_CELL,
                    tooltip=(
                        "Rule for boxes in coarse layers. A box takes the cells whose centre it "
                        "contains, and at least one; or, as in the paper, only whole cells, which "
                        "a small box may not contain."
                    ),
                ),
                io.Combo.Input(
                    "pooled",
                    options=list(POOLED),
                    default=MEAN,
                    tooltip=(
                        "Pooled vector of the whole picture (SDXL, SD3, Flux): the mean of all "
                        "prompts, weighted by their area, or the global prompt's vector."
                    ),
                ),
                io.Boolean.Input(
                    "isolate",
                    default=False,
                    tooltip=(
                        "Leaves keys and values of the picture unchanged by the regions' LoRAs. "
                        "Turn it on if a LoRA leaks into other regions; it then also blends in "
                        "less."
                    ),
                ),
                io.Combo.Input(
                    "without_tokens",
                    options=list(TOKENLESS),
                    default=AREA,
                    advanced=True,
                    tooltip=(
                        "Effect of a region's LoRA in layers without positions, such as those of "
                        "the timestep: in proportion to the region's area, or none."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the regions, for KSampler, SamplerCustom or a guider.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        regions: Sequence[Region],
        region_prompts: RegionPrompts | None = None,
        *,
        cells: str,
        pooled: str,
        isolate: bool,
        without_tokens: str,
    ) -> io.NodeOutput:
        """Apply the regions to a clone of the model."""
        return io.NodeOutput(
            with_regions(model, regions, region_prompts, cells, pooled, isolate, without_tokens)
        )


class RegionalControlWeight(io.ComfyNode):
    """Give a ControlNet a separate strength in each region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheRegionalControlWeight",
            display_name="Regional Control Weight",
            category="Pastiche/sample",
            description=(
                "Gives a ControlNet or T2I-Adapter a separate strength in each region; later "
                "regions overwrite earlier ones. Use it before Apply ControlNet. Mix-of-Show (Gu "
                "et al. 2023, arXiv:2305.18292), section 3.3."
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
                RegionsType.Input("regions", tooltip="Regions of the picture."),
                text_input(
                    "strengths",
                    "A region's name and its strength on each line, such as: cat 0.8. Other "
                    "regions get the strength inside.",
                ),
                io.Float.Input(
                    "inside",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength in regions without a line in strengths.",
                ),
                io.Float.Input(
                    "outside",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength outside all regions.",
                ),
                io.Combo.Input(
                    "cells",
                    options=list(CELL_RULES),
                    default=KEEPS_A_CELL,
                    tooltip="Rule for boxes in coarse layers: a box takes the cells whose centre "
                    "it contains, or only whole cells.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net",
                    tooltip="The ControlNet for Apply ControlNet, whose strength multiplies these.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        control_net: ControlNet | T2IAdapter,
        regions: Sequence[Region],
        strengths: str,
        inside: float,
        outside: float,
        cells: str,
    ) -> io.NodeOutput:
        """Apply the strengths to a copy of the ControlNet."""
        weighted = weighted_control(control_net, regions, strengths, inside, outside, cells)
        return io.NodeOutput(weighted)


NODES: list[type[io.ComfyNode]] = [RegionPrompt, ApplyRegionalAttention, RegionalControlWeight]
