"""The layouts of the templates fuse_concepts and fuse_downloaded_loras."""

from __future__ import annotations

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes

_CONCEPTS = """\
## Several concepts in one model

1. Choose the checkpoint that the concepts were trained on.
2. Choose the concepts' files; connect as many as you like to **Gradient Fusion**.
3. Write a prompt with their names, and press **Run**.

No training picture is needed: a concept's file is enough. The result is one ordinary LoRA.
"""

_FUSE = """\
Each concept is sampled once, alone; the rest is solved in closed form.

With **paper**, later stages see the fused earlier ones, and all concepts are sampled again when one \
is added or the damping changes. With **own**, only a new concept is sampled, and nothing for \
another damping, anchor, rank or energy.

Statistics are kept below *output/pastiche*.
"""

_REPORT = """\
The plot shows for every layer how much of each concept's effect is lost, compared with plain \
averaging. A concept that loses more than the others needs a higher **weight** (**Concept for \
Fusion**).
"""

_LORAS = """\
## Downloaded LoRAs as one

1. Choose a checkpoint of their family.
2. Choose the LoRAs.
3. Write **how each is called up**: one to four prompts with its trigger words. If empty, those of \
its file are used.
4. Press **Run**.

With the fused LoRA, each one's prompts work as with it alone; stacked files would mix.
"""

_STRENGTH = """\
**strength** is the strength for using the LoRA alone: 0.7 for most. **weight** says which LoRA \
matters more where they conflict.
"""


def _fusion_column(left: int, *concepts: str) -> dict[str, Node]:
    """Return the columns of the fusion, its report and the node that saves it."""
    return {
        "fuse": Node(
            "PasticheGradientFusion",
            (left, 50),
            (400, 560),
            "",
            {},
            {
                "model": ("checkpoint", 0),
                "clip": ("checkpoint", 1),
                **{f"concepts.concept{n}": (name, 0) for n, name in enumerate(concepts)},
            },
        ),
        "save": Node(
            "PasticheSaveLora",
            (left, 690),
            (400, 250),
            "",
            {"filename": "my_fusion"},
            {"lora": ("fuse", 2)},
        ),
        "fuse_note": note(_FUSE, (left, 1020), (400, 230), "About fusion"),
        "report": Node(
            "PasticheFusionReport", (left + 440, 50), (440, 620), "", {}, {"fusion": ("fuse", 5)}
        ),
        "report_note": note(_REPORT, (left + 440, 740), (440, 130), "About the report"),
    }


def _concept_prompt(left: int, text: str, title: str) -> Node:
    inputs = {"clip": ("fuse", 1), "concepts.concept0": ("fuse", 3)}
    return Node(
        "PasticheEncodeConceptPrompt", (left, 50), (360, 200), title, {"text": text}, inputs
    )


FUSE_CONCEPTS = Layout(
    nodes={
        "start": note(_CONCEPTS, (0, 0), (400, 300), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 430), (400, 98), "", {"ckpt_name": SDXL}),
        **{
            name: Node(
                "PasticheLoadConcept",
                (0, top),
                (400, 180),
                f"Concept {number}",
                {"concept_name": f"concepts/my_concept{number}.safetensors"},
            )
            for name, top, number in (("first", 680, 1), ("second", 970, 2))
        },
        **_fusion_column(480, "first", "second"),
        **shared_nodes(1440, "Seed of all pictures"),
        "one": _concept_prompt(
            1920, "a photo of <my_concept1> in the snow", "Prompt with the first"
        ),
        **sampler_column(1920, ("fuse", 0), ("one", 0), "first", "The first concept"),
        "other": _concept_prompt(
            2360, "a photo of <my_concept2> in the snow", "Prompt with the second"
        ),
        **sampler_column(2360, ("fuse", 0), ("other", 0), "second", "The second concept"),
    },
    groups=(
        Group("1 · Model", (-20, 350), (440, 200)),
        Group("2 · Concepts", (-20, 600), (440, 570)),
        Group("3 · Fuse", (460, -30), (440, 1300)),
        Group("4 · What is left of each", (900, -30), (480, 1300)),
        Group("5 · Canvas and seed", (1420, 290), (440, 540)),
        Group("6 · The first in the fused model", (1900, -30), (400, 1270)),
        Group("7 · The second in the same model", (2340, -30), (400, 1270)),
    ),
)


def _lora_to_fuse(number: int, file: str) -> dict[str, Node]:
    """Return the nodes that load a LoRA and give its trigger prompts."""
    return {
        f"lora{number}": Node(
            "PasticheLoadLora",
            (0, 480 + 180 * number),
            (400, 100),
            f"LoRA {number}",
            {"lora_name": file},
        ),
        f"concept{number}": Node(
            "PasticheConceptForFusion",
            (480, 380 * number - 330),
            (400, 300),
            f"How LoRA {number} is called up",
            {"trigger_prompts": f"a photo of trigger{number}"},
            {"lora": (f"lora{number}", 0)},
        ),
    }


def _apply_lora(number: int, model: tuple[str, int], clip: tuple[str, int]) -> Node:
    return Node(
        "PasticheApplyLora",
        (1920, 670 + 210 * number),
        (400, 150),
        f"LoRA {number} stacked",
        {"strength_model": 0.7, "strength_clip": 0.7},
        {"model": model, "clip": clip, "lora": (f"lora{number}", 0)},
    )


def _prompt(left: int, title: str, clip: tuple[str, int]) -> Node:
    text = {"text": "a photo of trigger1 and trigger2"}
    return Node("CLIPTextEncode", (left, 50), (360, 140), title, text, {"clip": clip})


FUSE_DOWNLOADED_LORAS = Layout(
    nodes={
        "start": note(_LORAS, (0, 0), (400, 330), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 460), (400, 98), "", {"ckpt_name": SDXL}),
        **_lora_to_fuse(1, "my_lora.safetensors"),
        **_lora_to_fuse(2, "my_style.safetensors"),
        "strength_note": note(_STRENGTH, (480, 810), (400, 130), "About strength"),
        **_fusion_column(960, "concept1", "concept2"),
        **shared_nodes(1920, "Seed of both pictures"),
        "stacked1": _apply_lora(1, ("checkpoint", 0), ("checkpoint", 1)),
        "stacked2": _apply_lora(2, ("stacked1", 0), ("stacked1", 1)),
        "stacked_prompt": _prompt(2400, "Prompt, stacked", ("stacked2", 1)),
        **sampler_column(2400, ("stacked2", 0), ("stacked_prompt", 0), "stacked", "Stacked"),
        "fused_prompt": _prompt(2840, "Prompt, fused", ("fuse", 1)),
        **sampler_column(2840, ("fuse", 0), ("fused_prompt", 0), "fused", "Fused"),
    },
    groups=(
        Group("1 · Model and LoRAs", (-20, 380), (440, 580)),
        Group("2 · How each is called up", (460, -30), (440, 990)),
        Group("3 · Fuse", (940, -30), (440, 1300)),
        Group("4 · What is left of each", (1380, -30), (480, 1300)),
        Group("5 · Stacked, to compare", (1900, 290), (440, 960)),
        Group("6 · Stacked", (2380, -30), (400, 1270)),
        Group("7 · Fused", (2820, -30), (400, 1270)),
    ),
)
