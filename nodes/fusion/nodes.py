"""Nodes that fuse any number of concepts and LoRAs into one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..bridge.inputs import concepts_input, connected_concepts, lines_of, seed_input, text_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import ConceptType, FusionType
from .as_concept import concept_for_fusion
from .plan import ACTIVATIONS, ANCHORS, KEEPING, FusionRequest
from .plot import report_plot
from .report import summary, table
from .run import fuse


class GradientFusion(io.ComfyNode):
    """Concepts and LoRAs as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheGradientFusion",
            display_name="Gradient Fusion",
            category="Pastiche/merge",
            description=(
                "Fuses any number of trained concepts and ordinary LoRAs into one LoRA that does "
                "on each one's own prompts what it did alone. Each is read and drawn once; the "
                "rest is solved in closed form. Statistics are kept: with own, another damping, "
                "anchor, rank or energy draws nothing anew."
            ),
            search_aliases=[
                "fuse",
                "merge loras",
                "combine loras",
                "gradient fusion",
                "mix of show",
                "multiple concepts",
                "regmean",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base that all concepts were made for."),
                io.Clip.Input("clip", tooltip="The base's text encoder."),
                concepts_input(
                    "From Train Concept, Load Concept or Concept for Fusion.",
                    "What is fused: any number, ordinary LoRAs through Concept for Fusion.",
                ),
                io.Combo.Input(
                    "activations",
                    options=list(ACTIVATIONS),
                    default=ACTIVATIONS[0],
                    tooltip=(
                        "paper: later stages see the fused earlier ones; a changed set of "
                        "concepts, or another damping, is drawn anew. own: each concept is drawn "
                        "with its own; a new concept costs its own drawing alone."
                    ),
                ),
                io.Combo.Input(
                    "anchor",
                    options=list(ANCHORS),
                    default=ANCHORS[0],
                    tooltip=(
                        "Where nothing is asked for: base leaves the model as it is, average "
                        "changes it as the plain average of the LoRAs does."
                    ),
                ),
                io.Float.Input(
                    "damping",
                    default=0.0,
                    min=-1.0,
                    max=100.0,
                    step=1e-6,
                    round=1e-8,
                    tooltip=(
                        "0 takes what suits each stage. Higher keeps the fused change smaller and "
                        "nearer to the anchor; below 0 none at all, which may spoil ordinary "
                        "pictures."
                    ),
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Maximum rank of each layer; 0 keeps every rank, without any loss.",
                ),
                io.Float.Input(
                    "energy",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.001,
                    tooltip=(
                        "How much of each layer's effect must stay when ranks are left out; 0.99 "
                        "makes smaller files. 1 leaves nothing out."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps of each prompt, without guidance. 20 is a good default.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side of the square pictures that are drawn; 0 is the base's own.",
                ),
                seed_input("Seed of the noise from which the concepts are sampled."),
                text_input(
                    "prior_prompts",
                    "One per line, such as: a photo of a person. On these the base shall stay "
                    "as it is; each is read and drawn as well.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=0.2,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How much they count beside a concept of weight 1.",
                ),
                io.Combo.Input(
                    "statistics",
                    options=list(KEEPING),
                    default=KEEPING[0],
                    tooltip=(
                        "What is kept below output/pastiche. sums: of all concepts together. A "
                        "Gram per concept: large; leaving a concept out then costs nothing. "
                        "nothing: removes what was kept for this base."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The base's, for concepts with pictures of their own.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Fused, ready to sample."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Fused, for Encode Concept Prompt or any text node.",
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The same as one ordinary LoRA, for Save LoRA (Pastiche).",
                ),
                ConceptType.Output(
                    display_name="concepts",
                    tooltip="The words of all, for Encode Concept Prompt.",
                ),
                io.String.Output(display_name="report", tooltip="What was done, in words."),
                FusionType.Output(display_name="fusion", tooltip="For Fusion Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, concepts, prior_prompts, **inputs: Any) -> io.NodeOutput:
        """Fuse."""
        fusion = fuse(
            FusionRequest(
                concepts=connected_concepts(concepts),
                prior_prompts=lines_of([prior_prompts]),
                **inputs,
            )
        )
        text = summary(fusion.report)
        return io.NodeOutput(
            fusion.model,
            fusion.clip,
            fusion.lora,
            fusion.concepts,
            text,
            fusion.report,
            ui=node_display(cls.hidden.unique_id, [], text),
        )


class ConceptForFusion(io.ComfyNode):
    """An ordinary LoRA as a concept that can be fused."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheConceptForFusion",
            display_name="Concept for Fusion",
            category="Pastiche/merge",
            description=(
                "Makes an ordinary LoRA with its trigger prompts into something that can be "
                "fused, or gives a trained concept another strength and weight."
            ),
            search_aliases=["lora to concept", "fuse lora", "merge lora", "trigger words"],
            inputs=[
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="From Load LoRA (Pastiche) or any trainer.",
                ),
                text_input(
                    "trigger_prompts",
                    "One per line: how the LoRA is called up, such as: a photo of sks dog. It "
                    "is read and drawn with each. Empty: what its file says.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.7,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "What is to be reproduced: the strength you would use it at alone. 0.7 for "
                        "most downloaded LoRAs, 1 for concepts of Train Concept."
                    ),
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Its importance where concepts get into each other's way.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What the report calls it. Empty: what its file says.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip=(
                        "Pictures of it, seen under noise in place of drawn ones; Gradient Fusion "
                        "then needs the VAE."
                    ),
                ),
                ConceptType.Input(
                    "concept",
                    optional=True,
                    tooltip="A trained concept in place of the LoRA.",
                ),
            ],
            outputs=[ConceptType.Output(display_name="concept", tooltip="For Gradient Fusion.")],
        )

    @classmethod
    def execute(
        cls, trigger_prompts, strength, weight, name, lora=None, images=None, concept=None
    ) -> io.NodeOutput:
        """Say what is to be fused."""
        prompts = lines_of([trigger_prompts])
        return io.NodeOutput(
            concept_for_fusion(lora, concept, prompts, name, strength, weight, images)
        )


class FusionReport(io.ComfyNode):
    """What a fusion left of every concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheFusionReport",
            display_name="Fusion Report",
            category="Pastiche/merge",
            description=(
                "Shows for every layer how much of each concept's effect fusion loses, beside "
                "plain averaging, with norms, seconds and memory."
            ),
            search_aliases=["fusion report", "fusion plot", "residual", "compare merge"],
            is_output_node=True,
            inputs=[FusionType.Input("fusion", tooltip="From Gradient Fusion.")],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="One panel for each concept."),
                io.String.Output(
                    display_name="table", tooltip="A line per layer, its columns parted by tabs."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, fusion) -> io.NodeOutput:
        """Draw the plot and write the table."""
        plot = report_plot(fusion)
        display = node_display(cls.hidden.unique_id, [plot], summary(fusion))
        return io.NodeOutput(plot, table(fusion), ui=display)


NODES: list[type[io.ComfyNode]] = [GradientFusion, ConceptForFusion, FusionReport]
