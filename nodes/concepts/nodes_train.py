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
from .words import STARTS


class TrainConcept(io.ComfyNode):
    """ED-LoRA: a named person, object or place from a few pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainConcept",
            display_name="Train Concept",
            category="Pastiche/train",
            description=(
                "Learns a person, an object or a place from a few pictures as a word of its own, "
                "<name>, that works in any prompt and beside other concepts. Most of it is learnt "
                "by the word itself, which every layer reads apart, and a small LoRA adds the "
                "rest. The result is kept below output/pastiche: an equal graph is not trained "
                "twice. ED-LoRA of Mix-of-Show, Gu et al. 2023, arXiv:2305.18292."
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
                *base_inputs("The base's text encoder, which learns the word; not changed."),
                io.Image.Input(
                    "images",
                    tooltip="Five to twenty pictures of the concept, a list or batch of them, such "
                    "as Load Training Images (Pastiche) gives. Large ones are resized.",
                ),
                io.String.Input(
                    "name",
                    default="my_concept1",
                    tooltip="A made-up word, without spaces, that the text encoder doesn't know. "
                    "In prompts it is written in angle brackets: <my_concept1>.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    placeholder="dog",
                    tooltip="What kind of thing it is, in one common word: man, woman, dog, chair. "
                    "The concept begins as it.",
                ),
                text_input(
                    "captions",
                    "What the pictures show besides the concept, with <name> in place of "
                    "the concept. One text serves all pictures, a list gives each its own; empty "
                    "is the name alone. A caption without the name gets it in front.",
                    placeholder="a <my_concept1> on a beach",
                ),
                steps_input(
                    "Training steps; each takes batch_size pictures. 0 is 1000, the "
                    "paper's for persons and places at 4 pictures a step; it has 500 for objects."
                ),
                rank_input("Size of the LoRA; 4 is the paper's. Alpha is the same.", default=4),
                rate_input(
                    "word_rate",
                    "How far a step moves the word, as a learning rate for CLIP-L; in text "
                    "encoders with longer rows steps are as much longer. 0 is the paper's 0.001.",
                ),
                rate_input(
                    "text_rate",
                    "How far a step moves the LoRA in the text encoder, CLIP-L and CLIP-G. "
                    "0 is the paper's 0.00001.",
                ),
                rate_input(
                    "learning_rate",
                    "How far a step moves the LoRA in the denoiser. 0 is the paper's 0.0001.",
                ),
                seed_input(
                    "Seed for all noise, noise levels and captions; the same seed repeats the run. "
                    "Results vary with the seed: try another one if a training fails."
                ),
                run_name_input("my_concept"),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One per picture and of its size: white where the concept is. Only "
                    "that is learnt, and the word's attention is kept to it.",
                ),
                settings_input(),
                io.Combo.Input(
                    "templates",
                    options=list(TEMPLATES),
                    default=ConceptTrainer.templates,
                    optional=True,
                    tooltip="Sentences that are written around the captions at random: for objects "
                    "and places, for persons, or none.",
                ),
                io.Combo.Input(
                    "learnt",
                    options=list(LEARNT),
                    default=ConceptTrainer.learnt,
                    optional=True,
                    advanced=True,
                    tooltip="What is learnt. Words alone show whether the word carries the concept.",
                ),
                io.Combo.Input(
                    "decay",
                    options=list(DECAYS),
                    default=ConceptTrainer.decay,
                    optional=True,
                    advanced=True,
                    tooltip="linear lets all rates fall to nothing at the end, as the paper does; "
                    "as set takes the schedule of Training Settings (Pastiche).",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=ConceptTrainer.noise_offset,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of noise that is constant over the picture, 0.01 in the paper. "
                    "It takes the place of the one in Training Settings (Pastiche).",
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
                    tooltip="With masks on SD1.5, SD2 and SDXL: how strongly the word's attention "
                    "is kept within them. 0.01 is the released code's, 0 is off.",
                ),
                io.Boolean.Input(
                    "fill_mask",
                    default=ConceptTrainer.fill_mask,
                    optional=True,
                    advanced=True,
                    tooltip="The class word's attention must also fill the mask: the released "
                    "code's choice for a figure seen whole.",
                ),
                io.Float.Input(
                    "embedding_stop",
                    default=ConceptTrainer.embedding_stop,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="The word stays as it is once its rows are so many times as long as "
                    "the vocabulary's. 1.45 is the released code's 0.55 on SD1.5; 0 is never.",
                ),
                io.Combo.Input(
                    "embedding_start",
                    options=list(STARTS),
                    default=ConceptTrainer.embedding_start,
                    optional=True,
                    advanced=True,
                    tooltip="Whether the new word begins alike in all layers (released code, main "
                    "branch) or apart (research branch).",
                ),
                io.Combo.Input(
                    "lora_start",
                    options=list(LORA_STARTS),
                    default=ConceptTrainer.lora_start,
                    optional=True,
                    advanced=True,
                    tooltip="How the LoRA begins: uniform (released code, main branch) or normal "
                    "(research branch).",
                ),
                io.Combo.Input(
                    "crops",
                    options=list(CROP_METHODS),
                    default=ConceptTrainer.crops,
                    optional=True,
                    advanced=True,
                    tooltip="How pictures are cut: each once, to its own shape; to random squares, "
                    "as the released research code has objects and places; or the whole and "
                    "parts of it somewhere on black, as the main branch has persons.",
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
                    tooltip="How strongly the word is drawn to where the vocabulary lies dense: "
                    "0.002 in the released research code, 0 in its main branch.",
                ),
                io.Float.Input(
                    "text_dropout",
                    default=ConceptTrainer.text_dropout,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the steps in which a layer that reads the text goes without "
                    "its LoRA, so that the word must carry more. The released research code has "
                    "0.2 for objects, 0 or up to 0.3 for persons. SD1.5, SD2, SDXL and Wan.",
                ),
            ],
            outputs=[
                ConceptType.Output(
                    display_name="concept",
                    tooltip="For Encode Concept Prompt, Apply Concept and Save Concept.",
                ),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Curves loss and concept; core's Plot Loss Graph draws it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        trainer = read_request(ConceptTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput((trainer.concept(output.loras),), output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainConcept]
