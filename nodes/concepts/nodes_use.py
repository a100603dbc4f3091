"""Nodes that put concepts into prompts and on models, and into files and back."""

from __future__ import annotations

from comfy_api.latest import io

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
        "From Train Concept or Load Concept.",
        "Any number of concepts, each with a name of its own.",
    )


class EncodeConceptPrompt(io.ComfyNode):
    """A prompt with concepts as CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheEncodeConceptPrompt",
            display_name="Encode Concept Prompt",
            category="Pastiche/sample",
            description=(
                "Encodes a prompt in which <name> stands for a trained concept, for any number of "
                "concepts at once. Use it for the negative prompt too, or the ordinary text node."
            ),
            search_aliases=["concept prompt", "text encode", "ed-lora", "mix of show", "prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that comes out of Apply Concept."),
                _concepts_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The prompt, with each concept's name in < and >, such as: a photo of "
                        "<my_dog> on a beach. Weights in brackets, embedding: words and BREAK work."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip=(
                        "For any sampler, on the MODEL of Apply Concept. On another MODEL every "
                        "layer reads the concepts' mean."
                    ),
                )
            ],
        )

    @classmethod
    def execute(cls, clip, concepts, text) -> io.NodeOutput:
        """Encode the prompt."""
        return io.NodeOutput(encode_concept_prompt(clip, connected_concepts(concepts), text))


class ApplyConcept(io.ComfyNode):
    """Concepts on a MODEL and its CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheApplyConcept",
            display_name="Apply Concept",
            category="Pastiche/sample",
            description=(
                "Puts concepts on a model: their LoRAs, and what lets every layer read its own rows "
                "of their words. Every sampler works, with ControlNet, masks, hooks and style "
                "guidance."
            ),
            search_aliases=["apply concept", "use concept", "ed-lora", "mix of show", "character"],
            inputs=[
                io.Model.Input("model", tooltip="The base model that the concepts were made for."),
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                _concepts_input(),
                strength_input(
                    "strength_model",
                    "How strongly the concepts' LoRAs change the model: 0.7 to 1; 0 leaves "
                    "the concepts to their words alone.",
                    most=100.0,
                ),
                strength_input(
                    "strength_clip",
                    "How strongly they change the text encoder: as the model, usually.",
                    most=100.0,
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For the sampler, or for further nodes."
                ),
                io.Clip.Output(display_name="clip", tooltip="For Encode Concept Prompt."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, concepts, strength_model, strength_clip) -> io.NodeOutput:
        """Check that the concepts fit and apply them."""
        wired = connected_concepts(concepts)
        return io.NodeOutput(*apply_concepts(model, clip, wired, strength_model, strength_clip))


class SaveConcept(io.ComfyNode):
    """A concept as a file among ComfyUI's LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheSaveConcept",
            display_name="Save Concept",
            category="Pastiche/io",
            description=(
                "Writes a concept into the first LoRA folder that can be written to: its LoRA, "
                "its words, its class and a picture, in one file that every LoRA loader takes. No "
                "training picture is passed on. An existing file is never overwritten."
            ),
            search_aliases=["save concept", "export concept", "ed-lora", "textual inversion"],
            is_output_node=True,
            inputs=[
                ConceptType.Input("concept", tooltip="From Train Concept or Load Concept."),
                filename_input("concepts/my_concept", "concept", "file"),
                precision_input(
                    "Precision of the LoRA: fp16 halves the file and rounds eight times finer "
                    "than bf16; fp32 keeps every bit. The words' embeddings are always fp16."
                ),
                io.Boolean.Input(
                    "save_embedding",
                    default=False,
                    tooltip=(
                        "Also write the mean of the words' rows as an ordinary embedding, for "
                        "prompts with embedding: anywhere. One row for all layers is less alike."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base model, for concepts that do not say it themselves.",
                ),
                preview_image_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="concept_name",
                    tooltip="The file's name as the loaders list it.",
                ),
                io.String.Output(
                    display_name="embedding",
                    tooltip="What to write in a prompt for the ordinary embedding, if one is saved.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, filename=None, **others) -> object:
        """Return what changes when the saved file is gone."""
        return saved_files_fingerprint(filename)

    @classmethod
    def execute(
        cls, concept, filename, precision, save_embedding, model=None, image=None
    ) -> io.NodeOutput:
        """Write the file."""
        name, embedding = save_concept(
            concept, filename, precision, model=model, image=image, embedding=save_embedding
        )
        return io.NodeOutput(name, embedding, ui={"text": (f"{name} {embedding}".strip(),)})


class LoadConcept(io.ComfyNode):
    """A file as PASTICHE_CONCEPT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadConcept",
            display_name="Load Concept",
            category="Pastiche/io",
            description=(
                "Reads a concept: this pack's, one of the released Mix-of-Show code (.pth, read as "
                "numbers; no program in it is ever run), or any LoRA with the embedding that "
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
                        "For an ordinary LoRA: the embedding that was made with it. None for "
                        "concept files, which hold their words themselves."
                    ),
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip=(
                        "The word for prompts, where it is written in < and >. Empty: the one that "
                        "the file says, else the file's own name."
                    ),
                ),
                io.String.Input(
                    "class_words",
                    default="",
                    tooltip="What kind of thing it is, such as dog. Empty: what the file says.",
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="For Apply Concept and Encode Concept Prompt.",
                ),
                io.LoraModel.Output(
                    display_name="lora", tooltip="Its LoRA alone, for all other nodes."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, concept_name, embedding=NO_EMBEDDING, **others) -> object:
        """Return what changes when the file does."""
        return concept_fingerprint(concept_name, embedding)

    @classmethod
    def execute(cls, concept_name, embedding, name, class_words) -> io.NodeOutput:
        """Read the file."""
        concept = load_concept(concept_name, embedding, name, class_words)
        return io.NodeOutput(concept, concept[0].lora)


NODES: list[type[io.ComfyNode]] = [EncodeConceptPrompt, ApplyConcept, SaveConcept, LoadConcept]
