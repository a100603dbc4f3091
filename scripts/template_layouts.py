"""What the templates hold: nodes, links, groups and notes, with their places on the canvas."""

from __future__ import annotations

from dataclasses import dataclass, field

Place = tuple[int, int]
Size = tuple[int, int]

SDXL = "sd_xl_base_1.0.safetensors"


@dataclass(frozen=True)
class Node:
    """One node: its widgets by name, its inputs as ``(name of a node here, output)``."""

    type: str
    place: Place
    size: Size
    title: str = ""
    widgets: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A titled frame."""

    title: str
    place: Place
    size: Size


@dataclass(frozen=True)
class Layout:
    """One template; node ids follow the order of ``nodes``."""

    nodes: dict[str, Node]
    groups: tuple[Group, ...]


def _note(text: str, place: Place, size: Size, title: str) -> Node:
    return Node("MarkdownNote", place, size, title, {"text": text})


def _painted(
    left: int, model: tuple[str, int], positive: tuple[str, int], name: str, title: str
) -> dict[str, Node]:
    """Return a column of sampler, decoder and picture; above it is room for what it compares."""
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


def _guided(left: int, style_lora: tuple[str, int]) -> Node:
    inputs = {"model": ("checkpoint", 0), "style_lora": style_lora, "style": ("prompts", 1)}
    return Node("PasticheApplyStyleGuidance", (left, 50), (360, 260), "", {}, inputs)


def _prompted(left: int, style_lora: tuple[str, int]) -> dict[str, Node]:
    """Return the column of what is painted: prompts, canvas and the seed of every picture."""
    clip = ("checkpoint", 1)
    return {
        "prompts": Node(
            "PasticheStylePrompts",
            (left, 50),
            (400, 260),
            "",
            {"prompt": "A photo of a cat"},
            {"clip": clip, "style_lora": style_lora},
        ),
        "negative": Node(
            "CLIPTextEncode",
            (left, 370),
            (400, 120),
            "Negative prompt",
            {"text": ""},
            {"clip": clip},
        ),
        "canvas": Node(
            "EmptyLatentImage",
            (left, 550),
            (400, 106),
            "",
            {"width": 1024, "height": 1024, "batch_size": 1},
        ),
        "seed": Node("PrimitiveInt", (left, 720), (400, 82), "Seed of all pictures", {"value": 0}),
        "prompt_note": _note(_PROMPT, (left, 870), (400, 170), "About prompts"),
    }


_START = """\
## From one pair to a styled picture

You need **one picture before and one after**: the same picture without and with the style.

1. Choose your checkpoint.
2. Choose your two pictures.
3. Say what they show, and name the style.
4. Say what to paint.
5. Press **Run**.

The first run trains: for SDXL the paper's authors report a quarter of an hour on a 24 GB card. \
Every later run finds the finished style and only paints: change prompts, scale and seed as you \
like.
"""

_PAIR = """\
Same size and same composition work best. Other sizes are fitted and cropped alike, and the train \
node shows the result after the run.

Do the two pictures differ in **style only**? Whatever else differs is learnt too.
"""

_TRAIN = """\
**content_prompt** says what the picture shows, with a rare word such as *sbu* before the subject: \
“A photo of a sbu dog”.

**style_words** is what you will write when you want the style: “in digital art style”.

**0** in steps, rank and learning_rate means the default of your model's family.

The LoRA lands in your loras folder; the finished run lies under *output/pastiche*.
"""

_PROMPT = """\
Write **without** the rare word and **without** the style: “A photo of a cat”. The node makes two \
prompts of it, plain and styled.

All pictures start from one seed, so that all they differ in is the style.
"""

_GUIDANCE = """\
This column paints **without** the style, to compare.

In the next one, **style_scale** 3 is a good start. 4 or 5 is stronger; lower it when the training \
picture shines through.

**start_percent** 0.2 leaves the first fifth to the base model, which keeps the composition. Raise \
it for busier pictures.
"""

PAIR_CUSTOMIZATION = Layout(
    nodes={
        "start": _note(_START, (0, 0), (360, 340), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 470), (360, 98), "", {"ckpt_name": SDXL}),
        "before": Node("LoadImage", (440, 50), (300, 400), "Before", {"image": "pair_before.png"}),
        "after": Node("LoadImage", (440, 510), (300, 400), "After", {"image": "pair_after.png"}),
        "pair_note": _note(_PAIR, (440, 980), (300, 210), "About the pair"),
        "settings": Node("PasticheTrainingSettings", (820, 50), (400, 240)),
        "train": Node(
            "PasticheTrainPair",
            (820, 340),
            (400, 880),
            "",
            {
                "content_prompt": "A photo of a sbu dog",
                "style_words": "in digital art style",
                "run_name": "my_style",
            },
            {
                "model": ("checkpoint", 0),
                "clip": ("checkpoint", 1),
                "vae": ("checkpoint", 2),
                "before": ("before", 0),
                "after": ("after", 0),
                "settings": ("settings", 0),
            },
        ),
        "train_note": _note(_TRAIN, (1260, 50), (360, 250), "About training"),
        "save": Node(
            "PasticheSaveLora",
            (1260, 350),
            (360, 260),
            "",
            {"filename": "my_style"},
            {"lora": ("train", 0), "image": ("after", 0)},
        ),
        "losses": Node(
            "LossGraphNode",
            (1260, 670),
            (360, 550),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 2)},
        ),
        **_prompted(1700, ("train", 0)),
        "guidance_note": _note(_GUIDANCE, (2180, 50), (360, 250), "About strength"),
        **_painted(2180, ("checkpoint", 0), ("prompts", 0), "plain", "Plain"),
        "guidance": _guided(2620, ("train", 0)),
        **_painted(2620, ("guidance", 0), ("prompts", 0), "styled", "Styled"),
    },
    groups=(
        Group("1 · Model", (-20, 390), (400, 200)),
        Group("2 · Your pair", (420, -30), (340, 1270)),
        Group("3 · Learn the style", (800, -30), (840, 1270)),
        Group("4 · What to paint", (1680, -30), (440, 1270)),
        Group("5 · Without the style", (2160, -30), (400, 1270)),
        Group("6 · With the style", (2600, -30), (400, 1270)),
    ),
)

_USE = """\
## Use a style that you have trained

The template *pair_customization* trains one.

1. Choose the checkpoint **that the style was trained on**.
2. Choose the style's file.
3. Say what to paint, without the style, and press **Run**.

Three pictures of one seed: without the style, with style guidance, and with the same file as an \
ordinary LoRA, to compare.
"""

_COMPARE = """\
**Style guidance** keeps what the plain picture shows and adds the style's direction. It costs \
about half as much time again.

**As an ordinary LoRA** the file works in every program, but tends to carry more of the training \
picture along.
"""

USE_A_STYLE = Layout(
    nodes={
        "start": _note(_USE, (0, 0), (360, 260), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 380), (360, 98), "", {"ckpt_name": SDXL}),
        "lora": Node(
            "PasticheLoadLora", (0, 530), (360, 100), "", {"lora_name": "my_style.safetensors"}
        ),
        "compare_note": _note(_COMPARE, (0, 700), (360, 190), "Which one?"),
        **_prompted(440, ("lora", 0)),
        "guidance_note": _note(_GUIDANCE, (920, 50), (360, 250), "About strength"),
        **_painted(920, ("checkpoint", 0), ("prompts", 0), "plain", "Plain"),
        "guidance": _guided(1360, ("lora", 0)),
        **_painted(1360, ("guidance", 0), ("prompts", 0), "styled", "Style guidance"),
        "apply": Node(
            "PasticheApplyLora",
            (1800, 50),
            (360, 150),
            "",
            {},
            {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "lora": ("lora", 0)},
        ),
        **_painted(1800, ("apply", 0), ("prompts", 1), "lora", "Ordinary LoRA"),
    },
    groups=(
        Group("1 · Model and style", (-20, 300), (400, 350)),
        Group("2 · What to paint", (420, -30), (440, 1270)),
        Group("3 · Without the style", (900, -30), (400, 1270)),
        Group("4 · With style guidance", (1340, -30), (400, 1270)),
        Group("5 · As an ordinary LoRA", (1780, -30), (400, 1270)),
    ),
)

LAYOUTS = {"pair_customization": PAIR_CUSTOMIZATION, "use_a_style": USE_A_STYLE}
