"""The node that trains concepts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...lora_ops.parametrizations.plain import LORA_STARTS
from ...training.concept_captions import TEMPLATES
from ..bridge.inputs import (
    base_inputs,
    rank_input,
    rate_input,
    run_name_input,
    seed_input,
    settings_input,
    steps_input,
    text_input,
)
from ..bridge.node_output import node_display
from ..bridge.socket_types import ConceptType
from ..pictures.crops import CROP_METHODS
from ..trainer.request import read_request
from ..trainer.run import run_training
from .train import DECAYS, LEARNT, ConceptTrainer
from .words import EMBEDDING_STARTS


class TrainConcept(io.ComfyNode):
    """A node that trains a concept from a few pictures with ED-LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainConcept",
            display_name="Train Concept",
            category="Pastiche/train",
            description=(
                "Learns a person, an object or a place from a few pictures as a new word, <name>, "
                "that works in any prompt and together with other concepts. Most of it is learnt "
                "by the word itself, which has a separate embedding for every layer, and a small "
                "LoRA adds the rest. The result is stored below output/pastiche, and an equal "
                "graph is not trained again. ED-LoRA of Mix-of-Show, Gu et al. 2023, "
                "arXiv:2305.18292."
            ),
            search_aliases=[
                "ed-lora",
                "mix-of-show",
                "textual inversion",
                "dreambooth",
                "character",
                "train lora",
                "concept",
            ],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs(
                    "The base's text encoder, for which the word is learnt; it is not changed."
                ),
                io.Image.Input(
                    "images",
                    tooltip="Five to twenty pictures of the concept, as a list or a batch, for "
                    "example from Load Training Images (Pastiche). Large ones are resized.",
                ),
                io.String.Input(
                    "name",
                    default="my_concept1",
                    tooltip="A made-up word without spaces that the text encoder doesn't know. "
                    "Write it in angle brackets in prompts: <my_concept1>.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    placeholder="dog",
                    tooltip="One common word for the kind of thing: man, woman, dog, chair. The "
                    "concept's second word is initialised from it.",
                ),
                text_input(
                    "captions",
                    "Descriptions of the pictures with <name> in place of the concept: one text "
                    "for all pictures, or a list with one for each. If empty, the caption is the "
                    "name; a caption without the name gets it in front.",
                    placeholder="a <my_concept1> on a beach",
                ),
                steps_input(
                    "Training steps of batch_size pictures each. 0 is 1000, the paper's number for "
                    "persons and places at 4 pictures a step; the paper has 500 for objects."
                ),
                rank_input("Rank of the LoRA; 4 is the paper's. Alpha equals the rank.", default=4),
                rate_input(
                    "word_rate",
                    "Learning rate of the word's embeddings for CLIP-L; other text encoders scale "
                    "it by the norm of their embeddings. 0 is the paper's 0.001.",
                ),
                rate_input(
                    "text_rate",
                    "Learning rate of the LoRA in the text encoder, CLIP-L and CLIP-G. "
                    "0 is the paper's 0.00001.",
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate of the LoRA in the denoiser. 0 is the paper's 0.0001.",
                ),
                seed_input(
                    "Seed for all noise, noise levels and captions; the same seed repeats the run. "
                    "Results vary with the seed: try another one if a training fails."
                ),
                run_name_input("my_concept"),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per picture and of its size, white where the concept is. "
                    "Only this part is learnt, and the word's attention is kept within it.",
                ),
                settings_input(),
                io.Combo.Input(
                    "templates",
                    options=list(TEMPLATES),
                    default=ConceptTrainer.templates,
                    optional=True,
                    tooltip="Sentences into which the captions are inserted at random: those for "
                    "objects and places, those for persons, or none.",
                ),
                io.Combo.Input(
                    "learnt",
                    options=list(LEARNT),
                    default=ConceptTrainer.learnt,
                    optional=True,
                    advanced=True,
                    tooltip="The parts that are trained. Train the words only to see whether they "
                    "carry the concept without a LoRA.",
                ),
                io.Combo.Input(
                    "decay",
                    options=list(DECAYS),
                    default=ConceptTrainer.decay,
                    optional=True,
                    advanced=True,
                    tooltip="Schedule of all learning rates. linear lowers them to 0 at the end, "
                    "as in the paper; as set uses the schedule of Training Settings (Pastiche).",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=ConceptTrainer.noise_offset,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Fraction of the noise that is constant over the picture; 0.01 in the "
                    "paper. It replaces the one in Training Settings (Pastiche).",
                ),
                io.Float.Input(
                    "attention_weight",
                    default=ConceptTrainer.attention_weight,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=0.0001,
                    optional=True,
                    advanced=True,
                    tooltip="How strongly the word's attention is kept within the masks, on "
                    "SD1.5, SD2 and SDXL. 0.01 is the released code's value; 0 is off.",
                ),
                io.Boolean.Input(
                    "fill_mask",
                    default=ConceptTrainer.fill_mask,
                    optional=True,
                    advanced=True,
                    tooltip="Whether the class word's attention must also fill the mask. The "
                    "released code does so for whole figures.",
                ),
                io.Float.Input(
                    "embedding_stop",
                    default=ConceptTrainer.embedding_stop,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Norm of the word's embeddings, relative to the vocabulary's mean "
                    "norm, at which their training stops. 1.45 is the released code's 0.55 on "
                    "SD1.5; 0 never stops it.",
                ),
                io.Combo.Input(
                    "embedding_start",
                    options=list(EMBEDDING_STARTS),
                    default=ConceptTrainer.embedding_start,
                    optional=True,
                    advanced=True,
                    tooltip="Whether the new word starts with the same embedding in all layers "
                    "(main branch of the released code) or with one for each layer (research "
                    "branch).",
                ),
                io.Combo.Input(
                    "lora_start",
                    options=list(LORA_STARTS),
                    default=ConceptTrainer.lora_start,
                    optional=True,
                    advanced=True,
                    tooltip="Distribution of the LoRA's initial values: uniform (main branch of "
                    "the released code) or normal (research branch).",
                ),
                io.Combo.Input(
                    "crops",
                    options=list(CROP_METHODS),
                    default=ConceptTrainer.crops,
                    optional=True,
                    advanced=True,
                    tooltip="How pictures are cropped: each once, with its own aspect; to random "
                    "squares, as in the released research code for objects and places; or whole "
                    "and in parts at a random position on black, as in the main branch for "
                    "persons.",
                ),
                io.Float.Input(
                    "density_weight",
                    default=ConceptTrainer.density_weight,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=0.0001,
                    optional=True,
                    advanced=True,
                    tooltip="Weight of the penalty that pulls the word towards dense regions of "
                    "the vocabulary: 0.002 in the released research code, 0 in its main branch.",
                ),
                io.Float.Input(
                    "text_dropout",
                    default=ConceptTrainer.text_dropout,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Fraction of the steps in which the LoRA of a cross-attention key or "
                    "value is left out, so that the word must carry more. The released research "
                    "code has 0.2 for objects and 0 to 0.3 for persons. For SD1.5, SD2, SDXL and "
                    "Wan.",
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="The trained concept, for Encode Concept Prompt, Apply Concept and "
                    "Save Concept.",
                ),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="The curves loss and concept, for ComfyUI's Plot Loss Graph.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train the concept, or reuse the result of an equal run."""
        trainer = read_request(ConceptTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput((trainer.concept(output.loras),), output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainConcept]
