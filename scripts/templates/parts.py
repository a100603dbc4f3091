"""Building blocks of template layouts: nodes, groups, notes and columns of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

Place = tuple[int, int]
Size = tuple[int, int]

SDXL = "sd_xl_base_1.0.safetensors"


@dataclass(frozen=True)
class Node:
    """A node on the canvas.

    Args:
        type: Node id.
        place: Position of the left upper corner.
        size: Width and height.
        title: Title on the canvas; empty for the node's own.
        widgets: Values of the widgets, by name.
        inputs: Links by input, each ``(name of a node in the layout, number of its output)``.
    """

    type: str
    place: Place
    size: Size
    title: str = ""
    widgets: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A group: a frame with a title."""

    title: str
    place: Place
    size: Size


@dataclass(frozen=True)
class Layout:
    """The contents of one template; node ids follow the order of ``nodes``."""

    nodes: dict[str, Node]
    groups: tuple[Group, ...]


def note(text: str, place: Place, size: Size, title: str) -> Node:
    """Return a node that shows a text in Markdown."""
    return Node("MarkdownNote", place, size, title, {"text": text})


def sampler_column(
    left: int, model: tuple[str, int], positive: tuple[str, int], name: str, title: str
) -> dict[str, Node]:
    """Return a column of a sampler, a decoder and a saved picture.

    The space above it, to the height of 370, is for the nodes that set the column apart.
    """
    widgets = {
        "control_after_generate": "fixed",
        "steps": 50,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    sampled = {
        "model": model,
        "positive": positive,
        "negative": ("negative", 0),
        "latent_image": ("canvas", 0),
        "seed": ("seed", 0),
    }
    decoded = {"samples": (f"{name}_sampler", 0), "vae": ("checkpoint", 2)}
    saved = {"images": (f"{name}_decoded", 0)}
    prefix = {"filename_prefix": f"pastiche_{name}"}
    return {
        f"{name}_sampler": Node("KSampler", (left, 370), (360, 262), "", widgets, sampled),
        f"{name}_decoded": Node("VAEDecode", (left, 690), (360, 46), "", {}, decoded),
        f"{name}_saved": Node("SaveImage", (left, 800), (360, 420), title, prefix, saved),
    }


def shared_nodes(left: int, seed_title: str) -> dict[str, Node]:
    """Return the negative prompt, latent and seed that all pictures share, from height 370 down."""
    return {
        "negative": Node(
            "CLIPTextEncode",
            (left, 370),
            (400, 120),
            "Negative prompt",
            {"text": ""},
            {"clip": ("checkpoint", 1)},
        ),
        "canvas": Node(
            "EmptyLatentImage",
            (left, 550),
            (400, 106),
            "",
            {"width": 1024, "height": 1024, "batch_size": 1},
        ),
        "seed": Node("PrimitiveInt", (left, 720), (400, 82), seed_title, {"value": 0}),
    }
