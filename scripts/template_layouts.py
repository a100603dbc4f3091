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


def _sampling(place: Place, model: tuple[str, int], positive: tuple[str, int]) -> Node:
    widgets = {
        "control_after_generate": "fixed",
        "steps": 50,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    inputs = {
        "model": model,
        "positive": positive,
        "negative": ("negative", 0),
        "latent_image": ("canvas", 0),
        "seed": ("seed", 0),
    }
    return Node("KSampler", place, (300, 262), "", widgets, inputs)


def _decoded(name: str, place: Place, sampler: str) -> Node:
    inputs = {"samples": (sampler, 0), "vae": ("checkpoint", 2)}
    return Node("VAEDecode", place, (300, 46), name, {}, inputs)


def _saved(name: str, place: Place, decoded: str, prefix: str) -> Node:
    return Node(
        "SaveImage", place, (420, 400), name, {"filename_prefix": prefix}, {"images": (decoded, 0)}
    )


_START = """\
## From one pair to a styled picture

You need **one picture before and one after**: the same picture without and with the style.

1. Choose your checkpoint.
2. Choose your two pictures.
3. Say what they show, and name the style.
4. Say what to paint.
5. Press **Run**.

The first run trains, about a quarter of an hour for SDXL on a 24 GB card. Every later run finds \
the finished style and only paints: change prompts, scale and seed as you like.
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

The seed drives both pictures, so that all they differ in is the style.
"""

_GUIDANCE = """\
**style_scale**: 3 is a good start. Stronger 4 to 5. Lower it when the training picture shines \
through.

**start_percent**: 0.2 leaves the first fifth of the steps to the base model, which keeps the \
composition. Raise it for busier pictures.
"""

PAIR_CUSTOMIZATION = Layout(
    nodes={
        "start": _note(_START, (0, 0), (360, 340), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 470), (360, 98), "", {"ckpt_name": SDXL}),
        "before": Node("LoadImage", (440, 50), (300, 330), "Before", {"image": "pair_before.png"}),
        "after": Node("LoadImage", (440, 430), (300, 330), "After", {"image": "pair_after.png"}),
        "pair_note": _note(_PAIR, (440, 810), (300, 190), "About the pair"),
        "settings": Node("PasticheTrainingSettings", (820, 50), (400, 240)),
        "train": Node(
            "PasticheTrainPair",
            (820, 340),
            (400, 680),
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
            (1260, 660),
            (360, 360),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 2)},
        ),
        "prompts": Node(
            "PasticheStylePrompts",
            (1700, 50),
            (400, 220),
            "",
            {"prompt": "A photo of a cat"},
            {"clip": ("checkpoint", 1), "style_lora": ("train", 0)},
        ),
        "negative": Node(
            "CLIPTextEncode",
            (1700, 320),
            (400, 120),
            "Negative prompt",
            {"text": ""},
            {"clip": ("checkpoint", 1)},
        ),
        "canvas": Node(
            "EmptyLatentImage",
            (1700, 490),
            (400, 106),
            "",
            {"width": 1024, "height": 1024, "batch_size": 1},
        ),
        "seed": Node("PrimitiveInt", (1700, 650), (400, 82), "Seed of both pictures", {"value": 0}),
        "prompt_note": _note(_PROMPT, (1700, 790), (400, 160), "About prompts"),
        "plain_sampler": _sampling((2180, 50), ("checkpoint", 0), ("prompts", 0)),
        "plain_picture": _decoded("", (2180, 360), "plain_sampler"),
        "plain_saved": _saved("Plain", (2510, 50), "plain_picture", "pastiche_plain"),
        "guidance": Node(
            "PasticheApplyStyleGuidance",
            (2180, 600),
            (300, 260),
            "",
            {},
            {
                "model": ("checkpoint", 0),
                "style_lora": ("train", 0),
                "style": ("prompts", 1),
            },
        ),
        "styled_sampler": _sampling((2180, 910), ("guidance", 0), ("prompts", 0)),
        "styled_picture": _decoded("", (2180, 1220), "styled_sampler"),
        "styled_saved": _saved("Styled", (2510, 600), "styled_picture", "pastiche_styled"),
        "guidance_note": _note(_GUIDANCE, (2510, 1050), (420, 170), "About strength"),
    },
    groups=(
        Group("1 · Model", (-20, 390), (400, 200)),
        Group("2 · Your pair", (420, -30), (340, 1090)),
        Group("3 · Learn the style", (800, -30), (840, 1090)),
        Group("4 · What to paint", (1680, -30), (440, 1090)),
        Group("5 · Without the style", (2160, -30), (790, 500)),
        Group("6 · With the style", (2160, 520), (790, 780)),
    ),
)

_USE = """\
## Use a style that you have trained

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
        "start": _note(_USE, (0, 0), (360, 250), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 380), (360, 98), "", {"ckpt_name": SDXL}),
        "lora": Node(
            "PasticheLoadLora", (0, 530), (360, 100), "", {"lora_name": "my_style.safetensors"}
        ),
        "prompts": Node(
            "PasticheStylePrompts",
            (440, 50),
            (400, 220),
            "",
            {"prompt": "A photo of a cat"},
            {"clip": ("checkpoint", 1), "style_lora": ("lora", 0)},
        ),
        "negative": Node(
            "CLIPTextEncode",
            (440, 320),
            (400, 120),
            "Negative prompt",
            {"text": ""},
            {"clip": ("checkpoint", 1)},
        ),
        "canvas": Node(
            "EmptyLatentImage",
            (440, 490),
            (400, 106),
            "",
            {"width": 1024, "height": 1024, "batch_size": 1},
        ),
        "seed": Node("PrimitiveInt", (440, 650), (400, 82), "Seed of all pictures", {"value": 0}),
        "plain_sampler": _sampling((920, 50), ("checkpoint", 0), ("prompts", 0)),
        "plain_picture": _decoded("", (920, 360), "plain_sampler"),
        "plain_saved": _saved("Plain", (1250, 50), "plain_picture", "pastiche_plain"),
        "guidance": Node(
            "PasticheApplyStyleGuidance",
            (920, 600),
            (300, 260),
            "",
            {},
            {
                "model": ("checkpoint", 0),
                "style_lora": ("lora", 0),
                "style": ("prompts", 1),
            },
        ),
        "styled_sampler": _sampling((920, 910), ("guidance", 0), ("prompts", 0)),
        "styled_picture": _decoded("", (920, 1220), "styled_sampler"),
        "styled_saved": _saved("Style guidance", (1250, 600), "styled_picture", "pastiche_styled"),
        "guidance_note": _note(_GUIDANCE, (1250, 1050), (420, 170), "About strength"),
        "apply": Node(
            "PasticheApplyLora",
            (1770, 600),
            (300, 150),
            "",
            {},
            {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "lora": ("lora", 0)},
        ),
        "lora_sampler": _sampling((1770, 910), ("apply", 0), ("prompts", 1)),
        "lora_picture": _decoded("", (1770, 1220), "lora_sampler"),
        "lora_saved": _saved("Ordinary LoRA", (2100, 600), "lora_picture", "pastiche_lora"),
        "compare_note": _note(_COMPARE, (2100, 1050), (420, 170), "Which one?"),
    },
    groups=(
        Group("1 · Model and style", (-20, 300), (400, 350)),
        Group("2 · What to paint", (420, -30), (440, 790)),
        Group("3 · Without the style", (900, -30), (790, 500)),
        Group("4 · With style guidance", (900, 520), (790, 780)),
        Group("5 · As an ordinary LoRA", (1750, 520), (790, 780)),
    ),
)

LAYOUTS = {"pair_customization": PAIR_CUSTOMIZATION, "use_a_style": USE_A_STYLE}
