"""Nodes that encode prompts with concepts, apply concepts, and save and load them."""

# ComfyUI declares ``execute(**kwargs)``, but calls it with the inputs that the schema declares.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from torch import Tensor

from ...training.files.concept import Concept
from ..bridge.inputs import (
    concepts_input,
    connected_concepts,
    filename_input,
    precision_input,
    preview_image_input,
    strength_input,
)
from ..bridge.socket_types import ConceptType
from ..lora.files import saved_files_fingerprint
from ..lora.folders import lora_names
from ..text.concept_prompt import encode_concept_prompt
from .apply import apply_concepts
from .files import NO_EMBEDDING, concept_fingerprint, embedding_names, load_concept, save_concept


def _concepts_input() -> io.Autogrow.Input:
    return concepts_input(
        "A concept, from Train Concept or Load Concept.",
        "Any number of concepts with different names.",
    )


class EncodeConceptPrompt(io.ComfyNode):
    """A node that encodes a prompt with concepts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheEncodeConceptPrompt",
            display_name="Encode Concept Prompt",
            category="Pastiche/sample",
            description=(
                "Encodes a prompt in which <name> stands for a trained concept, for any number of "
                "concepts. The negative prompt may use this node or an ordinary text node."
            ),
            search_aliases=["concept prompt", "text encode", "ed-lora", "mix of show", "prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder from Apply Concept."),
                _concepts_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The prompt, with each concept's name in < and >, such as: a photo of "
                        "<my_dog> on a beach. Weights in brackets, embedding: words and BREAK also "
                        "work."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip=(
                        "The encoded prompt, for any sampler with the MODEL of Apply Concept. With "
                        "another MODEL every layer reads the concepts' mean embeddings."
                    ),
                )
            ],
        )

    @classmethod
    def execute(
        cls, clip: CLIP, concepts: Mapping[str, Sequence[Concept]], text: str
    ) -> io.NodeOutput:
        """Encode the prompt."""
        return io.NodeOutput(encode_concept_prompt(clip, connected_concepts(concepts), text))


class ApplyConcept(io.ComfyNode):
    """A node that applies concepts to a MODEL and its CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyConcept",
            display_name="Apply Concept",
            category="Pastiche/sample",
            description=(
                "Applies concepts to a model: their LoRAs, and the wrappers that let every layer "
                "read its own embeddings of their words. It works with every sampler, and with "
                "ControlNet, masks, hooks and style guidance."
            ),
            search_aliases=["apply concept", "use concept", "ed-lora", "mix of show", "character"],
            inputs=[
                io.Model.Input("model", tooltip="The base model for which the concepts were made."),
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                _concepts_input(),
                strength_input(
                    "strength_model",
                    "Strength of the concepts' LoRAs on the model, usually 0.7 to 1. At 0 only the "
                    "words carry the concepts.",
                    most=100.0,
                ),
                strength_input(
                    "strength_clip",
                    "Strength of the concepts' LoRAs on the text encoder, usually the same as on "
                    "the model.",
                    most=100.0,
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the concepts, for any sampler."
                ),
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder for Encode Concept Prompt."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concepts: Mapping[str, Sequence[Concept]],
        strength_model: float,
        strength_clip: float,
    ) -> io.NodeOutput:
        """Check that the concepts fit and apply them."""
        connected = connected_concepts(concepts)
        return io.NodeOutput(*apply_concepts(model, clip, connected, strength_model, strength_clip))


class SaveConcept(io.ComfyNode):
    """A node that saves a concept as a LoRA file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheSaveConcept",
            display_name="Save Concept",
            category="Pastiche/io",
            description=(
                "Writes a concept into the first writable LoRA folder: its LoRA, its words, its "
                "class and a picture, in one file that every LoRA loader accepts. The file "
                "contains no training picture. An existing file is never overwritten."
            ),
            search_aliases=["save concept", "export concept", "ed-lora", "textual inversion"],
            is_output_node=True,
            inputs=[
                ConceptType.Input(
                    "concept", tooltip="The concept, from Train Concept or Load Concept."
                ),
                filename_input("concepts/my_concept", "concept", "file"),
                precision_input(
                    "Precision of the LoRA. fp16 halves the file and rounds eight times finer than "
                    "bf16; fp32 keeps every bit. The words' embeddings are always fp16."
                ),
                io.Boolean.Input(
                    "save_embedding",
                    default=False,
                    tooltip=(
                        "Also write each word's mean embedding as an ordinary embedding, for "
                        "embedding: in any prompt. It resembles the concept less, as all layers "
                        "share it."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base model; needed only for concepts that do not record it.",
                ),
                preview_image_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="concept_name",
                    tooltip="The name of the file in the lists of the loaders.",
                ),
                io.String.Output(
                    display_name="embedding",
                    tooltip="The text to write in prompts for the ordinary embedding, if it is "
                    "saved.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, filename: str | None = None, **others: Any) -> object:
        """Return a value that changes if the saved file is gone."""
        return saved_files_fingerprint(filename)

    @classmethod
    def execute(
        cls,
        concept: Sequence[Concept],
        filename: str,
        precision: str,
        save_embedding: bool,
        model: ModelPatcher | None = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        """Write the file."""
        name, embedding = save_concept(
            concept, filename, precision, model=model, image=image, embedding=save_embedding
        )
        return io.NodeOutput(name, embedding, ui={"text": (f"{name} {embedding}".strip(),)})


class LoadConcept(io.ComfyNode):
    """A node that loads a concept from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadConcept",
            display_name="Load Concept",
            category="Pastiche/io",
            description=(
                "Loads a concept of this pack, one of the released Mix-of-Show code (.pth; only "
                "its numbers are read, no code in it is run), or any LoRA with the embedding that "
                "belongs to it."
            ),
            search_aliases=["load concept", "open concept", "ed-lora", "textual inversion"],
            inputs=[
                io.Combo.Input(
                    "concept_name",
                    options=lora_names(),
                    tooltip="A .safetensors or .pth file in one of the LoRA folders.",
                ),
                io.Combo.Input(
                    "embedding",
                    options=embedding_names(),
                    default=NO_EMBEDDING,
                    tooltip=(
                        "The embedding that belongs to an ordinary LoRA. Choose none for concept "
                        "files, which contain their words."
                    ),
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip=(
                        "Name of the concept, which is written in < and > in prompts. If empty, it "
                        "is the name in the file's metadata, or else the name of the file."
                    ),
                ),
                io.String.Input(
                    "class_words",
                    default="",
                    tooltip=(
                        "The kind of thing, such as dog. If empty, it is taken from the file's "
                        "metadata."
                    ),
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="The concept, for Apply Concept and Encode Concept Prompt.",
                ),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The concept's LoRA without its words."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, concept_name: str, embedding: str = NO_EMBEDDING, **others: Any
    ) -> object:
        """Return a value that changes whenever the file changes."""
        return concept_fingerprint(concept_name, embedding)

    @classmethod
    def execute(
        cls, concept_name: str, embedding: str, name: str, class_words: str
    ) -> io.NodeOutput:
        """Read the file."""
        concept = load_concept(concept_name, embedding, name, class_words)
        return io.NodeOutput(concept, concept[0].lora)


NODES: list[type[io.ComfyNode]] = [EncodeConceptPrompt, ApplyConcept, SaveConcept, LoadConcept]
