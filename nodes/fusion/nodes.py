"""Nodes that fuse any number of concepts and LoRAs into one LoRA."""

# ComfyUI declares ``execute(**kwargs)``, but calls it with the inputs that the schema declares.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...training.files.concept import Concept
from ...training.files.lora_state import LoraState
from ..bridge.inputs import concepts_input, connected_concepts, lines_of, seed_input, text_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import ConceptType, FusionType
from .as_concept import concept_for_fusion
from .plan import ACTIVATIONS, ANCHORS, STORED_STATISTICS, FusionRequest
from .plot import report_plot
from .report import FusionReport, summary, table
from .run import fuse


class GradientFusion(io.ComfyNode):
    """A node that fuses concepts and LoRAs into one LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheGradientFusion",
            display_name="Gradient Fusion",
            category="Pastiche/merge",
            description=(
                "Fuses any number of trained concepts and ordinary LoRAs into one LoRA that acts "
                "on the prompts of each one as that one did alone. Each is sampled once, and the "
                "fused layers are solved in closed form. Statistics are stored: with own "
                "activations, a change of damping, anchor, rank or energy needs no new sampling."
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
                io.Model.Input("model", tooltip="The base model for which all concepts were made."),
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                concepts_input(
                    "From Train Concept, Load Concept or Concept for Fusion.",
                    "The concepts to fuse, any number. Connect an ordinary LoRA through Concept "
                    "for Fusion.",
                ),
                io.Combo.Input(
                    "activations",
                    options=list(ACTIVATIONS),
                    default=ACTIVATIONS[0],
                    tooltip=(
                        "The inputs on which layers are fused. paper: later stages use the fused "
                        "earlier ones, so that another set of concepts or another damping samples "
                        "all of them again. own: each concept is sampled with its own changes, so "
                        "that a new concept costs only its own sampling."
                    ),
                ),
                io.Combo.Input(
                    "anchor",
                    options=list(ANCHORS),
                    default=ANCHORS[0],
                    tooltip=(
                        "The change on inputs that no concept determines. base: no change. "
                        "average: the plain average of the LoRAs."
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
                        "How strongly the fused change is pulled towards the anchor; 0 takes the "
                        "default of each stage. Raise it if ordinary pictures change too much. "
                        "Below 0 there is no damping, which may spoil ordinary pictures."
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
                        "Fraction of each layer's effect to keep when its rank is reduced. 1 keeps "
                        "everything; 0.99 makes smaller files."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps per prompt, without guidance. 20 is a good default.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side of the square pictures to sample; 0 is the base model's "
                    "resolution.",
                ),
                seed_input("Seed of the noise from which the concepts are sampled."),
                text_input(
                    "prior_prompts",
                    "Prompts on which the base model shall stay unchanged, one per line, such as: "
                    "a photo of a person. Each is sampled too.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=0.2,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip=(
                        "Weight of all prior prompts together, compared with a concept of weight "
                        "1. Raise it to keep the base model more closely."
                    ),
                ),
                io.Combo.Input(
                    "statistics",
                    options=list(STORED_STATISTICS),
                    default=STORED_STATISTICS[0],
                    tooltip=(
                        "The statistics to store below output/pastiche. sums: those of all "
                        "concepts together. a Gram per concept: much larger, but a concept can be "
                        "removed without new sampling. nothing: removes what was stored for this "
                        "base."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The base model's VAE; needed only for concepts with pictures.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the fused LoRA, ready to sample."
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip=(
                        "The text encoder with the fused LoRA, for Encode Concept Prompt or any "
                        "text node."
                    ),
                ),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The fused LoRA as an ordinary LoRA, for Save LoRA (Pastiche).",
                ),
                ConceptType.Output(
                    display_name="concepts",
                    tooltip="All concepts with their words, for Encode Concept Prompt.",
                ),
                io.String.Output(display_name="report", tooltip="A summary of the fusion."),
                FusionType.Output(
                    display_name="fusion", tooltip="The results of the fusion, for Fusion Report."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, concepts: Mapping[str, Sequence[Concept]], prior_prompts: str, **inputs: Any
    ) -> io.NodeOutput:
        """Fuse the concepts."""
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
    """A node that prepares an ordinary LoRA or a trained concept for fusion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheConceptForFusion",
            display_name="Concept for Fusion",
            category="Pastiche/merge",
            description=(
                "Prepares an ordinary LoRA for Gradient Fusion by its trigger prompts, or gives a "
                "trained concept another strength and weight."
            ),
            search_aliases=["lora to concept", "fuse lora", "merge lora", "trigger words"],
            inputs=[
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="An ordinary LoRA, from Load LoRA (Pastiche) or any trainer.",
                ),
                text_input(
                    "trigger_prompts",
                    "Prompts that trigger the LoRA, one per line, such as: a photo of sks dog. It "
                    "is sampled with each of them. If empty, they are taken from the file's "
                    "metadata.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.7,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "The strength to reproduce: the one at which you would use it alone. Use "
                        "0.7 for most downloaded LoRAs and 1 for concepts of Train Concept."
                    ),
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "Importance where concepts conflict. Raise it if the fusion loses too much "
                        "of this one."
                    ),
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name in the report. If empty, it is taken from the file's metadata.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip=(
                        "Pictures of it, which are noised and used in place of sampled ones. "
                        "Gradient Fusion then needs the VAE."
                    ),
                ),
                ConceptType.Input(
                    "concept",
                    optional=True,
                    tooltip="A trained concept to use in place of a LoRA.",
                ),
            ],
            outputs=[ConceptType.Output(display_name="concept", tooltip="For Gradient Fusion.")],
        )

    @classmethod
    def execute(
        cls,
        trigger_prompts: str,
        strength: float,
        weight: float,
        name: str,
        lora: LoraState | None = None,
        images: Tensor | None = None,
        concept: Sequence[Concept] | None = None,
    ) -> io.NodeOutput:
        """Check the inputs and return the concepts to fuse."""
        prompts = lines_of([trigger_prompts])
        return io.NodeOutput(
            concept_for_fusion(lora, concept, prompts, name, strength, weight, images)
        )


class FusionReportNode(io.ComfyNode):
    """A node that shows how much of every concept a fusion loses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheFusionReport",
            display_name="Fusion Report",
            category="Pastiche/merge",
            description=(
                "Shows for every layer how much of each concept's effect the fusion loses, "
                "compared with plain averaging, together with norms, seconds and memory."
            ),
            search_aliases=["fusion report", "fusion plot", "residual", "compare merge"],
            is_output_node=True,
            inputs=[FusionType.Input("fusion", tooltip="The fusion output of Gradient Fusion.")],
            outputs=[
                io.Image.Output(
                    display_name="plot", tooltip="The losses by layer, one panel per concept."
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="The summary, and one line per layer with tab-separated columns.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, fusion: FusionReport) -> io.NodeOutput:
        """Return the plot and the table."""
        plot = report_plot(fusion)
        display = node_display(cls.hidden.unique_id, [plot], summary(fusion))
        return io.NodeOutput(plot, table(fusion), ui=display)


NODES: list[type[io.ComfyNode]] = [GradientFusion, ConceptForFusion, FusionReportNode]
