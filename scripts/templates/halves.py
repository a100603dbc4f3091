"""The layouts of the templates break_for_make and shelf_of_halves."""

from __future__ import annotations

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes

_BASE = {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "vae": ("checkpoint", 2)}
_STYLE_PROMPT = "a woman walking a dog in w@z flat cartoon illustration style"
_OTHER_STYLES = (
    "a photo of a teapot\na teapot in sticker style\na teapot in oil painting style\n"
    "a teapot in 3d rendering style"
)
_OTHER_CONTENTS = "a photo of a teapot\na photo of a bicycle\na photo of a lighthouse"


def _prompt_column(left: int, title: str, value: str, paint_note: str) -> dict[str, Node]:
    """Return the column of the prompt and the other nodes that all pictures share."""
    return {
        "prompt": Node(
            "PrimitiveStringMultiline",
            (left, 50),
            (400, 120),
            title,
            {"value": value},
        ),
        "positive": Node(
            "CLIPTextEncode",
            (left, 230),
            (400, 80),
            "Positive prompt",
            {},
            {"clip": ("checkpoint", 1), "text": ("prompt", 0)},
        ),
        **shared_nodes(left, "Seed of both pictures"),
        "paint_note": note(paint_note, (left, 870), (400, 170), "About painting"),
    }


def _lora_column(left: int, lora: tuple[str, int]) -> dict[str, Node]:
    """Return the column that applies the LoRA and samples with it."""
    inputs = {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "lora": lora}
    return {
        "apply": Node("PasticheApplyLora", (left, 50), (360, 150), "", {}, inputs),
        **sampler_column(left, ("apply", 0), ("positive", 0), "lora", "With the LoRA"),
    }


def _save_half(half: tuple[str, int], filename: str, place: tuple[int, int], title: str) -> Node:
    widgets = {"filename": filename}
    return Node("PasticheSaveHalf", place, (360, 250), title, widgets, {"half": half})


_START = """\
## One thing, one style, one LoRA

You need **about four pictures of one thing** and **one to three pictures in one style**. No \
picture has to show the thing in the style.

1. Put the pictures of your thing into **one folder** under ComfyUI's *input* folder, press **R** \
and choose the folder.
2. Choose a picture in the style.
3. Choose your checkpoint.
4. Say what they show, and name both words.
5. Press **Run**.

The first run learns the thing, the style, and then both together. Every later run finds what was \
learnt and only paints.
"""

_CONTENTS = """\
Give your thing **a rare word** and write it into every text: *snq* in “a photo of snq \
teddybear”. The same word goes into **content_token**.

Do the same for the style: *w@z* in “a woman walking a dog in w@z flat cartoon illustration \
style”, and *w@z* in **style_token**. The two words must differ.
"""

_OTHERS = """\
**other_styles**: one line per picture in some other style. They keep the thing free of any one \
style.

**other_contents**: one line per picture of some other thing. They keep the style free of any one \
thing.

Write what your checkpoint paints well: it paints each line once and keeps the picture under \
*output/pastiche/auxiliary*. Three or four lines are enough.
"""

_STRENGTHS = """\
Does the thing lose its shape? Lower **style_strength** or raise **content_strength**. Does the \
style fade? Do the opposite. Neither needs new training.

**0** in steps, rank and learning_rate, **-1** in make_steps, means the default.

Both halves are kept too: *shelf_of_halves* puts them together with others.
"""

_PAINT = """\
Write **both words** into the prompt: “snq teddybear … in w@z flat cartoon illustration style”.

Lower **strength_model** when the training pictures shine through.
"""

BREAK_FOR_MAKE = Layout(
    nodes={
        "start": note(_START, (0, 0), (360, 430), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 560), (360, 98), "", {"ckpt_name": SDXL}),
        "settings": Node("PasticheTrainingSettings", (0, 780), (360, 780)),
        "content": Node(
            "PasticheLoadTrainingImages",
            (440, 50),
            (360, 320),
            "Your thing",
            {"folder": "training_pictures", "caption": "a photo of snq teddybear"},
        ),
        "style": Node(
            "LoadImage", (440, 440), (360, 400), "Your style", {"image": "pair_after.png"}
        ),
        "words_note": note(_CONTENTS, (440, 910), (360, 230), "About the two words"),
        "train": Node(
            "PasticheTrainB4M",
            (880, 50),
            (420, 1340),
            "",
            {
                "content_token": "snq",
                "style_prompt": _STYLE_PROMPT,
                "style_token": "w@z",
                "other_styles": _OTHER_STYLES,
                "other_contents": _OTHER_CONTENTS,
                "run_name": "my_content_and_style",
            },
            {
                **_BASE,
                "content_images": ("content", 0),
                "content_prompt": ("content", 1),
                "style_images": ("style", 0),
                "settings": ("settings", 0),
            },
        ),
        "others_note": note(_OTHERS, (1340, 50), (360, 280), "About other styles and contents"),
        "strengths_note": note(_STRENGTHS, (1340, 390), (360, 240), "About strengths"),
        "losses": Node(
            "LossGraphNode",
            (1340, 690),
            (360, 550),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 3)},
        ),
        "save": Node(
            "PasticheSaveLora",
            (1780, 50),
            (360, 260),
            "",
            {"filename": "my_content_and_style"},
            {"lora": ("train", 0)},
        ),
        "save_content": _save_half(
            ("train", 1), "halves/my_content", (1780, 380), "Save the content half"
        ),
        "save_style": _save_half(
            ("train", 2), "halves/my_style", (1780, 700), "Save the style half"
        ),
        **_prompt_column(
            2220,
            "Prompt with both words",
            "snq teddybear on a beach in w@z flat cartoon illustration style",
            _PAINT,
        ),
        **sampler_column(2700, ("checkpoint", 0), ("positive", 0), "plain", "Plain"),
        **_lora_column(3140, ("train", 0)),
    },
    groups=(
        Group("3 · Model", (-20, 480), (400, 200)),
        Group("Settings, if you need them", (-20, 700), (400, 880)),
        Group("1 and 2 · Your pictures", (420, -30), (400, 1270)),
        Group("4 · Learn", (860, -30), (860, 1440)),
        Group("5 · Keep the LoRA and its halves", (1760, -30), (400, 1270)),
        Group("6 · What to paint", (2200, -30), (440, 1270)),
        Group("7 · Without the LoRA", (2680, -30), (400, 1270)),
        Group("8 · With the LoRA", (3120, -30), (400, 1270)),
    ),
)

_SHELF = """\
## Any thing in any style

A **half** knows one thing or one style. Every content half fits every style half of the same \
checkpoint.

1. Choose the checkpoint **that your halves were trained on**.
2. Choose a content and a style from your shelf. *break_for_make* makes the first two.
3. Train a new content and a new style, each from its own pictures.
4. Press **Run**.

The sheet shows every thing in every style. The last columns make one LoRA of the new content and \
the new style.
"""

_FIT = """\
Halves fit if they were trained with the same **rank**, **targets** and **basis_seed**. If they \
don't, the node says which differs.

The words of two halves that are put together must differ too.
"""

_NEW = """\
**role** says what the pictures show: one thing, or one style.

**token** is the rare word in the prompt.

**auxiliary_prompts**: for a thing, some other styles; for a style, some other things. One per \
line.
"""

_LISTS = """\
**Create List** collects halves. Connect as many as you like: a new slot appears.

Two contents and two styles make four pictures.
"""

_MAKING = """\
With **steps** 0 the two halves are joined unchanged, and no pictures are needed.

With steps, both are trained together for a while on the pictures that they were learnt from, \
which brings them into balance. Use the prompts of the two train nodes.
"""

_PAINT_NEW_HALVES = """\
Write **both words** into the prompt, as in the training prompts.

Does one of the two spoil the other? Lower its strength on the make node: nothing is trained again.
"""


def _train_half(left: int, role: str, title: str, widgets: dict[str, object]) -> Node:
    return Node(
        "PasticheTrainHalf",
        (left, 510),
        (400, 1000),
        title,
        {"role": role, **widgets},
        {**_BASE, "images": (f"{role}_picture", 0), "settings": ("settings", 0)},
    )


def _list_node(role: str, place: tuple[int, int]) -> Node:
    inputs = {"inputs.input0": (f"shelf_{role}", 0), "inputs.input1": (f"new_{role}", 0)}
    return Node("CreateList", place, (320, 110), f"All {role}s", {}, inputs)


SHELF_OF_HALVES = Layout(
    nodes={
        "start": note(_SHELF, (0, 0), (360, 380), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 510), (360, 98), "", {"ckpt_name": SDXL}),
        "shelf_content": Node(
            "PasticheLoadHalf",
            (0, 730),
            (360, 150),
            "Content from the shelf",
            {"lora_name": "halves/my_content.safetensors"},
        ),
        "shelf_style": Node(
            "PasticheLoadHalf",
            (0, 980),
            (360, 150),
            "Style from the shelf",
            {"lora_name": "halves/my_style.safetensors"},
        ),
        "fit_note": note(_FIT, (0, 1230), (360, 170), "Which halves fit"),
        "content_picture": Node(
            "LoadImage", (440, 50), (400, 390), "Its picture", {"image": "pair_2_before.png"}
        ),
        "new_content": _train_half(
            440,
            "content",
            "New content",
            {
                "prompt": "a photo of kxz cat",
                "token": "kxz",
                "auxiliary_prompts": _OTHER_STYLES,
                "run_name": "my_new_content",
            },
        ),
        "style_picture": Node(
            "LoadImage", (920, 50), (400, 390), "Its picture", {"image": "blueprint_after.png"}
        ),
        "new_style": _train_half(
            920,
            "style",
            "New style",
            {
                "prompt": "a house in qvr ink drawing style",
                "token": "qvr",
                "auxiliary_prompts": _OTHER_CONTENTS,
                "run_name": "my_new_style",
            },
        ),
        "new_note": note(_NEW, (1400, 50), (360, 230), "About new halves"),
        "settings": Node("PasticheTrainingSettings", (1400, 430), (360, 780)),
        "save_content": _save_half(
            ("new_content", 0), "halves/my_new_content", (1840, 50), "Save the new content"
        ),
        "save_style": _save_half(
            ("new_style", 0), "halves/my_new_style", (1840, 370), "Save the new style"
        ),
        "lists_note": note(_LISTS, (1840, 690), (360, 140), "About lists"),
        "all_contents": _list_node("content", (1840, 890)),
        "all_styles": _list_node("style", (1840, 1070)),
        "sheet": Node(
            "PasticheHalfSheet",
            (2280, 50),
            (420, 780),
            "",
            {"width": 1024, "height": 1024, "steps": 30, "cfg": 5.0},
            {**_BASE, "contents": ("all_contents", 0), "styles": ("all_styles", 0)},
        ),
        "sheet_saved": Node(
            "SaveImage",
            (2740, 50),
            (520, 780),
            "Sheet",
            {"filename_prefix": "pastiche_sheet"},
            {"images": ("sheet", 0)},
        ),
        "make": Node(
            "PasticheMake",
            (3340, 50),
            (400, 640),
            "",
            {
                "steps": 200,
                "content_prompt": "a photo of kxz cat",
                "style_prompt": "a house in qvr ink drawing style",
                "run_name": "my_new_lora",
            },
            {
                "contents": ("new_content", 0),
                "styles": ("new_style", 0),
                **_BASE,
                "content_images": ("content_picture", 0),
                "style_images": ("style_picture", 0),
                "settings": ("settings", 0),
            },
        ),
        "make_note": note(_MAKING, (3340, 760), (400, 200), "About making"),
        "save": Node(
            "PasticheSaveLora",
            (3340, 1020),
            (400, 260),
            "",
            {"filename": "my_new_lora"},
            {"lora": ("make", 0)},
        ),
        **_prompt_column(
            3820,
            "Prompt with both new words",
            "kxz cat in qvr ink drawing style",
            _PAINT_NEW_HALVES,
        ),
        **sampler_column(4300, ("checkpoint", 0), ("positive", 0), "plain", "Plain"),
        **_lora_column(4740, ("make", 0)),
    },
    groups=(
        Group("1 · Model", (-20, 430), (400, 200)),
        Group("2 · Your shelf", (-20, 650), (400, 770)),
        Group("3 · A new content", (420, -30), (440, 1560)),
        Group("3 · A new style", (900, -30), (440, 1560)),
        Group("Only if you want other settings", (1380, 350), (400, 880)),
        Group("4 · Keep and collect", (1820, -30), (400, 1270)),
        Group("5 · Every thing in every style", (2260, -30), (1020, 1270)),
        Group("6 · Make one LoRA", (3320, -30), (440, 1330)),
        Group("7 · What to paint", (3800, -30), (440, 1270)),
        Group("8 · Without the LoRA", (4280, -30), (400, 1270)),
        Group("9 · With the LoRA", (4720, -30), (400, 1270)),
    ),
)
