"""The node that trains concepts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...lora_ops.parametrizations.plain import DOWN_STARTS
from ...training import TrainingSettings
from ...training.concept_captions import TEMPLATES
from ..bridge.inputs import only, rate_input, seed_input, settings_input
from ..bridge.node_output import node_display
from ..bridge.socket_types import ConceptType
from ..pictures.crops import CROPS
from .plan import LEARNT, RELEASED_STOP, ConceptRequest
from .train import train_concept
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
                io.Model.Input("model", tooltip="The base to learn on; it is not changed."),
                io.Clip.Input(
                    "clip", tooltip="The base's text encoder, which learns the word; not changed."
                ),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
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
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    placeholder="a <my_concept1> on a beach",
                    tooltip="What the pictures show besides the concept, with <name> in place of "
                    "the concept. One text serves all pictures, a list gives each its own; empty "
                    "is the name alone. A caption without the name gets it in front.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Training steps; each takes batch_size pictures. 0 is 1000, the "
                    "paper's for persons and places at 4 pictures a step; it has 500 for objects.",
                ),
                io.Int.Input(
                    "rank",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA; 4 is the paper's. Alpha is the same.",
                ),
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
                io.String.Input(
                    "run_name",
                    default="my_concept",
                    tooltip="Name of the run's folder below output/pastiche.",
                ),
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
                    default="object",
                    optional=True,
                    tooltip="Sentences that are written around the captions at random: for objects "
                    "and places, for persons, or none.",
                ),
                io.Combo.Input(
                    "learnt",
                    options=list(LEARNT),
                    default=LEARNT[0],
                    optional=True,
                    advanced=True,
                    tooltip="What is learnt. Words alone show whether the word carries the concept.",
                ),
                io.Combo.Input(
                    "decay",
                    options=["linear", "as set"],
                    default="linear",
                    optional=True,
                    advanced=True,
                    tooltip="linear lets all rates fall to nothing at the end, as the paper does; "
                    "as set takes the schedule of Training Settings (Pastiche).",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.01,
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
                    default=0.01,
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
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="The class word's attention must also fill the mask: the released "
                    "code's choice for a figure seen whole.",
                ),
                io.Float.Input(
                    "embedding_stop",
                    default=RELEASED_STOP,
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
                    default=STARTS[0],
                    optional=True,
                    advanced=True,
                    tooltip="Whether the new word begins alike in all layers (released code, main "
                    "branch) or apart (research branch).",
                ),
                io.Combo.Input(
                    "lora_start",
                    options=list(DOWN_STARTS),
                    default=DOWN_STARTS[0],
                    optional=True,
                    advanced=True,
                    tooltip="How the LoRA begins: uniform (released code, main branch) or normal "
                    "(research branch).",
                ),
                io.Combo.Input(
                    "crops",
                    options=list(CROPS),
                    default=CROPS[0],
                    optional=True,
                    advanced=True,
                    tooltip="How pictures are cut: each once, to its own shape; to random squares, "
                    "as the released research code has objects and places; or the whole and "
                    "parts of it somewhere on black, as the main branch has persons.",
                ),
                io.Float.Input(
                    "density_weight",
                    default=0.0,
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
                    default=0.0,
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
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        images: list[Any],
        name: list[str],
        class_word: list[str],
        captions: list[str],
        steps: list[int],
        rank: list[int],
        word_rate: list[float],
        text_rate: list[float],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        masks: list[Any] | None = None,
        settings: list[TrainingSettings] | None = None,
        templates: list[str] | None = None,
        learnt: list[str] | None = None,
        decay: list[str] | None = None,
        noise_offset: list[float] | None = None,
        attention_weight: list[float] | None = None,
        fill_mask: list[bool] | None = None,
        embedding_stop: list[float] | None = None,
        embedding_start: list[str] | None = None,
        lora_start: list[str] | None = None,
        crops: list[str] | None = None,
        density_weight: list[float] | None = None,
        text_dropout: list[float] | None = None,
    ) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        result = train_concept(
            ConceptRequest(
                model=only("model", model),
                clip=only("clip", clip),
                vae=only("vae", vae),
                images=images,
                name=only("name", name),
                class_word=only("class_word", class_word),
                captions=captions,
                steps=only("steps", steps),
                rank=only("rank", rank),
                word_rate=only("word_rate", word_rate),
                text_rate=only("text_rate", text_rate),
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                masks=masks or (),
                settings=only("settings", settings or [TrainingSettings()]),
                templates=only("templates", templates or ["object"]),
                learnt=only("learnt", learnt or [LEARNT[0]]),
                decay=only("decay", decay or ["linear"]),
                noise_offset=only("noise_offset", noise_offset or [0.01]),
                attention=only("attention_weight", attention_weight or [0.01]),
                fill_mask=only("fill_mask", fill_mask or [False]),
                stop=only("embedding_stop", embedding_stop or [RELEASED_STOP]),
                start=only("embedding_start", embedding_start or [STARTS[0]]),
                down_start=only("lora_start", lora_start or [DOWN_STARTS[0]]),
                crops=only("crops", crops or [CROPS[0]]),
                density=only("density_weight", density_weight or [0.0]),
                dropout=only("text_dropout", text_dropout or [0.0]),
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.concepts, result.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainConcept]
