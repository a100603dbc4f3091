"""The layouts of the templates train_concept and use_concepts."""

from __future__ import annotations

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes

_BASE = {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "vae": ("checkpoint", 2)}

_START = """\
## A person, an object or a place, learnt as a new word

1. Put **five to twenty pictures** of it into **one folder** under ComfyUI's *input* folder, press \
**R** and choose the folder.
2. Choose your checkpoint.
3. Give it a **name**, a made-up word, and say in one common word what it is.
4. Press **Run**.

In every prompt the name stands in angle brackets: *<my_concept1>*.
"""

_CAPTIONS = """\
A caption says what a picture shows **besides** the concept, with the name where the concept is: \
“a photo of <my_concept1> on a beach”. A caption without the name gets it in front.

Without text files, the node's *caption* serves all pictures.
"""

_TRAIN = """\
**0** in steps and rates means the paper's values.

Most of it is learnt by the word itself, which has an embedding for every layer; a small LoRA adds \
the rest. Results differ from seed to seed: if one fails, try another **seed**.

The file contains no picture unless you connect one.
"""

_PAINT = """\
Write **<my_concept1>** where the concept belongs. Both pictures start from one seed.

The negative prompt may come from the ordinary text node.
"""

TRAIN_CONCEPT = Layout(
    nodes={
        "start": note(_START, (0, 0), (360, 340), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 470), (360, 98), "", {"ckpt_name": SDXL}),
        "pictures": Node(
            "PasticheLoadTrainingImages",
            (440, 50),
            (360, 320),
            "",
            {"folder": "training_pictures", "caption": "a photo of <my_concept1>"},
        ),
        "captions_note": note(_CAPTIONS, (440, 440), (360, 230), "About captions"),
        "settings": Node("PasticheTrainingSettings", (440, 830), (360, 780)),
        "train": Node(
            "PasticheTrainConcept",
            (880, 50),
            (400, 1150),
            "",
            {"name": "my_concept1", "class_word": "dog", "run_name": "my_concept"},
            {
                **_BASE,
                "images": ("pictures", 0),
                "captions": ("pictures", 1),
                "masks": ("pictures", 2),
                "settings": ("settings", 0),
            },
        ),
        "train_note": note(_TRAIN, (1320, 50), (360, 270), "About training"),
        "save": Node(
            "PasticheSaveConcept",
            (1320, 390),
            (360, 280),
            "",
            {"filename": "concepts/my_concept1"},
            {"concept": ("train", 0)},
        ),
        "losses": Node(
            "LossGraphNode",
            (1320, 740),
            (360, 480),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 1)},
        ),
        "apply": Node(
            "PasticheApplyConcept",
            (1760, 50),
            (400, 180),
            "",
            {},
            {
                "model": ("checkpoint", 0),
                "clip": ("checkpoint", 1),
                "concepts.concept0": ("train", 0),
            },
        ),
        **shared_nodes(1760, "Seed of both pictures"),
        "paint_note": note(_PAINT, (1760, 870), (400, 170), "About painting"),
        "plain_prompt": Node(
            "CLIPTextEncode",
            (2240, 50),
            (360, 140),
            "Prompt without the concept",
            {"text": "a photo of a dog in the snow"},
            {"clip": ("checkpoint", 1)},
        ),
        **sampler_column(2240, ("checkpoint", 0), ("plain_prompt", 0), "plain", "Plain"),
        "prompt": Node(
            "PasticheEncodeConceptPrompt",
            (2680, 50),
            (360, 180),
            "Prompt with the concept",
            {"text": "a photo of <my_concept1> in the snow"},
            {"clip": ("apply", 1), "concepts.concept0": ("train", 0)},
        ),
        **sampler_column(2680, ("apply", 0), ("prompt", 0), "concept", "With the concept"),
    },
    groups=(
        Group("1 · Your pictures", (420, -30), (400, 720)),
        Group("2 · Model", (-20, 390), (400, 200)),
        Group("Only if you want other settings", (420, 750), (400, 880)),
        Group("3 · Learn", (860, -30), (840, 1270)),
        Group("4 · Put it on the model", (1740, -30), (440, 1270)),
        Group("5 · Without the concept", (2220, -30), (400, 1270)),
        Group("6 · With the concept", (2660, -30), (400, 1270)),
    ),
)

_USE = """\
## Concepts from files, several in one picture

1. Choose your checkpoint: the one that the concepts were trained on, or one of its family.
2. Choose the concepts' files. Every **Load Concept** brings one; connect as many as you like to \
**Apply Concept** and **Encode Concept Prompt**.
3. Write the prompt with their names in angle brackets, and press **Run**.

Files of Mix-of-Show (*.pth*, or a LoRA and its embedding) load too.
"""

_STRENGTH = """\
**strength_model** and **strength_clip** say how strongly the concepts' LoRAs act. At **0** only the \
words are left: much of a concept is in them.

A prompt that was encoded for other concepts than the model carries is refused.
"""

_TOGETHER = """\
Two concepts in one prompt may mix. Give each a separate part of the sentence, and lower the \
strength of the one that takes over.
"""


def _load_concept(top: int, number: int) -> Node:
    widgets = {"concept_name": f"concepts/my_concept{number}.safetensors"}
    return Node("PasticheLoadConcept", (0, top), (400, 180), f"Concept {number}", widgets)


def _with_concepts(**inputs: tuple[str, int]) -> dict[str, tuple[str, int]]:
    return {**inputs, "concepts.concept0": ("first", 0), "concepts.concept1": ("second", 0)}


USE_CONCEPTS = Layout(
    nodes={
        "start": note(_USE, (0, 0), (400, 310), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 440), (400, 98), "", {"ckpt_name": SDXL}),
        "first": _load_concept(610, 1),
        "second": _load_concept(900, 2),
        "apply": Node(
            "PasticheApplyConcept",
            (480, 50),
            (400, 200),
            "",
            {},
            _with_concepts(model=("checkpoint", 0), clip=("checkpoint", 1)),
        ),
        **shared_nodes(480, "Seed of all pictures"),
        "strength_note": note(_STRENGTH, (480, 870), (400, 190), "About strength"),
        "together_note": note(_TOGETHER, (480, 1100), (400, 110), "About several"),
        "alone": Node(
            "PasticheEncodeConceptPrompt",
            (960, 50),
            (360, 200),
            "Prompt with one concept",
            {"text": "a photo of <my_concept1> in the snow"},
            _with_concepts(clip=("apply", 1)),
        ),
        **sampler_column(960, ("apply", 0), ("alone", 0), "one", "One concept"),
        "both": Node(
            "PasticheEncodeConceptPrompt",
            (1400, 50),
            (360, 200),
            "Prompt with two concepts",
            {
                "text": "a photo of <my_concept1> on the left and <my_concept2> on the right, in "
                "the snow"
            },
            _with_concepts(clip=("apply", 1)),
        ),
        **sampler_column(1400, ("apply", 0), ("both", 0), "two", "Two concepts"),
    },
    groups=(
        Group("1 · Model and concepts", (-20, 360), (440, 800)),
        Group("2 · Put them on the model", (460, -30), (440, 1270)),
        Group("3 · One", (940, -30), (400, 1270)),
        Group("4 · Two", (1380, -30), (400, 1270)),
    ),
)
