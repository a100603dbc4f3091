"""The layouts of the templates regions_two_subjects, regions_from_colours and regions_with_control."""

from __future__ import annotations

import json
from dataclasses import replace

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes

_TWO = """\
## Each subject in its place

1. Choose your checkpoint.
2. Draw the **regions** on the node, and name them.
3. Say **what is in each** as a whole prompt; **common words** stand before every one.
4. Describe the whole picture: that prompt is used outside the regions.
5. Press **Run**.

Both pictures start from one seed: one from a single prompt, one with the regions.
"""

_DRAWING = """\
Drag to draw, drag a box to move it, its handles to resize it. Arrow keys move, with Shift they \
resize; Ctrl+Z undoes while the canvas has the focus. **layout** makes rows and columns instead: \
`1,1` is two halves.
"""

_PROMPTS = """\
A region uses only its own prompt, so repeat the scene: “a cat in a garden”. For another region add \
another **Region Prompt** between the last one and **Apply Regional Attention**.

A **LoRA** or a **concept** connected to a Region Prompt acts in that region alone.
"""

_COLOURS = """\
## A painted sketch, a LoRA for each colour

1. Paint who stands where in plain colours on white, save it as PNG, and choose it here.
2. Choose your checkpoint and a LoRA for each region.
3. Say what is in **red** and in **blue**.
4. Press **Run**.

Each LoRA acts in its own region, in one run of the sampler.
"""

_NAMES = """\
Regions are named after their colours. Write `cat #ff0000` in **colours** to name them yourself, \
and raise **tolerance** if the noise of a JPEG adds colours.
"""

_BOXES = [
    {"name": "left", "x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0},
    {"name": "right", "x": 0.5, "y": 0.0, "width": 0.5, "height": 1.0},
]
_REGIONS_TEXT = json.dumps({"regions": _BOXES}, indent=2)


def _region_prompt(
    top: int, region: str, text: str, before: str | None, lora: str | None = None
) -> Node:
    inputs = {"clip": ("checkpoint", 1)}
    if before:
        inputs["region_prompts"] = (before, 0)
    if lora:
        inputs["lora"] = (lora, 0)
    widgets = {"region": region, "text": text}
    return Node("PasticheRegionPrompt", (960, top), (400, 400), f"In {region}", widgets, inputs)


def _picture_columns(regions: tuple[str, int], prompts: str, text: str) -> dict[str, Node]:
    """Return the columns from the global prompt to both pictures and the shown regions."""
    encoded = Node(
        "CLIPTextEncode",
        (1440, 50),
        (400, 140),
        "The whole picture",
        {"text": text},
        {"clip": ("checkpoint", 1)},
    )
    return {
        "prompt": encoded,
        **shared_nodes(1440, "Seed of both pictures"),
        "apply": Node(
            "PasticheApplyRegionalAttention",
            (1920, 50),
            (360, 200),
            "",
            {},
            {"model": ("checkpoint", 0), "regions": regions, "region_prompts": (prompts, 0)},
        ),
        **sampler_column(1920, ("apply", 0), ("prompt", 0), "regions", "With regions"),
        **sampler_column(2360, ("checkpoint", 0), ("prompt", 0), "one", "One prompt"),
        "show": Node(
            "PasticheShowRegions",
            (2800, 50),
            (400, 560),
            "",
            {},
            {"regions": regions, "picture": ("regions_decoded", 0)},
        ),
    }


def _groups(first: str, second: str, heights: tuple[int, int]) -> tuple[Group, ...]:
    return (
        Group(f"1 · {first}", (-20, 400), (440, heights[0])),
        Group(f"2 · {second}", (460, -30), (440, heights[1])),
        Group("3 · What is in each", (940, -30), (440, 1230)),
        Group("4 · The whole picture", (1420, -30), (440, 890)),
        Group("5 · With regions", (1900, -30), (400, 1270)),
        Group("6 · Without, to compare", (2340, -30), (400, 1270)),
        Group("7 · Where the regions are", (2780, -30), (440, 660)),
    )


_TWO_NODES = {
    "start": note(_TWO, (0, 0), (400, 370), "Start here"),
    "checkpoint": Node("CheckpointLoaderSimple", (0, 480), (400, 98), "", {"ckpt_name": SDXL}),
    "regions": Node("PasticheRegions", (480, 50), (400, 780), "", {"regions": _REGIONS_TEXT}),
    "draw_note": note(_DRAWING, (480, 900), (400, 170), "About drawing"),
    "left": _region_prompt(50, "left", "a cat in a garden", None),
    "right": _region_prompt(520, "right", "a dog in a garden", "left"),
    "prompts_note": note(_PROMPTS, (960, 990), (400, 200), "About prompts"),
    **_picture_columns(
        ("regions", 0), "right", "a cat on the left and a dog on the right in a garden"
    ),
}
# The canvas has the size of the area on which the regions are drawn.
_TWO_NODES["canvas"] = replace(
    _TWO_NODES["canvas"], inputs={"width": ("regions", 1), "height": ("regions", 2)}
)
REGIONS_TWO_SUBJECTS = Layout(_TWO_NODES, _groups("Model", "Regions", (200, 1120)))

REGIONS_FROM_COLOURS = Layout(
    nodes={
        "start": note(_COLOURS, (0, 0), (400, 330), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 480), (400, 98), "", {"ckpt_name": SDXL}),
        "red_lora": Node(
            "PasticheLoadLora",
            (0, 650),
            (400, 100),
            "For red",
            {"lora_name": "my_lora.safetensors"},
        ),
        "blue_lora": Node(
            "PasticheLoadLora",
            (0, 830),
            (400, 100),
            "For blue",
            {"lora_name": "my_style.safetensors"},
        ),
        "sketch": Node(
            "LoadImage", (480, 50), (400, 400), "Your sketch", {"image": "regions_sketch.png"}
        ),
        "regions": Node(
            "PasticheRegionsFromColours", (480, 530), (400, 400), "", {}, {"picture": ("sketch", 0)}
        ),
        "names_note": note(_NAMES, (480, 1000), (400, 140), "About names"),
        "left": _region_prompt(50, "red", "a photo of trigger1 in a garden", None, "red_lora"),
        "right": _region_prompt(520, "blue", "a photo of a dog in your style", "left", "blue_lora"),
        "prompts_note": note(_PROMPTS, (960, 990), (400, 200), "About prompts"),
        **_picture_columns(("regions", 0), "right", "trigger1 and a dog in a garden"),
    },
    groups=_groups("Model and LoRAs", "Regions from a sketch", (550, 1190)),
)

_CONTROL = """\
## An outline here, freedom there

1. Choose your checkpoint and a **ControlNet** of its family.
2. Choose the picture that the ControlNet follows, such as an outline.
3. Paint the places in plain colours on a sketch, or connect your own masks to **Regions from \
Masks**.
4. Say in **strengths** how strongly the outline acts in each place.
5. Press **Run**.
"""

_WEIGHTS = """\
A name and a number on each line. Places without a region have the strength **outside**. The strength \
of **Apply ControlNet** multiplies all of them.

Any number of ControlNets can be chained, each with its own strengths.
"""


def _colour_mask(top: int, title: str, colour: int) -> Node:
    sketch = {"image": ("sketch", 0)}
    return Node("ImageColorToMask", (480, top), (400, 82), title, {"color": colour}, sketch)


def _control_column(left: int, control: str, name: str, title: str) -> dict[str, Node]:
    """Return the column that applies a ControlNet and samples with it."""
    applied = Node(
        "ControlNetApplyAdvanced",
        (left, 50),
        (360, 190),
        "",
        {},
        {
            "positive": ("prompt", 0),
            "negative": ("negative", 0),
            "control_net": (control, 0),
            "image": ("outline", 0),
        },
    )
    column = sampler_column(left, ("checkpoint", 0), (f"{name}_control", 0), name, title)
    sampler = column[f"{name}_sampler"]
    negative = {**sampler.inputs, "negative": (f"{name}_control", 1)}
    return {
        f"{name}_control": applied,
        **column,
        f"{name}_sampler": replace(sampler, inputs=negative),
    }


REGIONS_WITH_CONTROL = Layout(
    nodes={
        "start": note(_CONTROL, (0, 0), (400, 370), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 480), (400, 98), "", {"ckpt_name": SDXL}),
        "control": Node(
            "ControlNetLoader",
            (0, 650),
            (400, 60),
            "",
            {"control_net_name": "diffusers_xl_canny_mid.safetensors"},
        ),
        "outline": Node(
            "LoadImage", (0, 790), (400, 400), "Your outline", {"image": "pair_before.png"}
        ),
        "sketch": Node(
            "LoadImage", (480, 50), (400, 400), "Your sketch", {"image": "regions_sketch.png"}
        ),
        "first": _colour_mask(530, "Red place", 0xDC2828),
        "second": _colour_mask(690, "Blue place", 0x2850DC),
        "regions": Node(
            "PasticheRegionsFromMasks",
            (480, 850),
            (400, 340),
            "",
            {"names": "outlined, free"},
            {"masks.mask0": ("first", 0), "masks.mask1": ("second", 0)},
        ),
        "weight": Node(
            "PasticheRegionalControlWeight",
            (960, 50),
            (400, 300),
            "",
            {"strengths": "outlined 1\nfree 0"},
            {"control_net": ("control", 0), "regions": ("regions", 0)},
        ),
        "weight_note": note(_WEIGHTS, (960, 430), (400, 190), "About strengths"),
        "show": Node(
            "PasticheShowRegions",
            (960, 700),
            (400, 480),
            "",
            {},
            {"regions": ("regions", 0), "picture": ("outline", 0)},
        ),
        "prompt": Node(
            "CLIPTextEncode",
            (1440, 50),
            (400, 140),
            "The whole picture",
            {"text": "a cat on the left and a dog on the right in a garden"},
            {"clip": ("checkpoint", 1)},
        ),
        **shared_nodes(1440, "Seed of both pictures"),
        **_control_column(1920, "weight", "region", "Outline in one region"),
        **_control_column(2360, "control", "whole", "Outline everywhere"),
    },
    groups=(
        Group("1 · Model and outline", (-20, 400), (440, 820)),
        Group("2 · Places", (460, -30), (440, 1250)),
        Group("3 · How strongly in each", (940, -30), (440, 1250)),
        Group("4 · The whole picture", (1420, -30), (440, 890)),
        Group("5 · Outline in one region", (1900, -30), (400, 1270)),
        Group("6 · Outline everywhere, to compare", (2340, -30), (400, 1270)),
    ),
)
