"""The layout of the template train_plain_lora."""

from __future__ import annotations

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes

_PLAIN = """\
## An ordinary LoRA from your own pictures

1. Put your pictures into **one folder** under ComfyUI's *input* folder, with a text file for \
each: *dog_1.png*, *dog_1.txt*. Press **R**, then choose the folder.
2. Choose your checkpoint.
3. Press **Run**.

Ten to thirty pictures of one thing, in different surroundings, are a good start.

Every later run finds the finished LoRA and only paints. Raise *steps*, and training goes on where \
it stopped.
"""

_CAPTIONS = """\
A caption says **what the picture shows**, with a rare word for what is new: “a photo of a sbu dog \
on a meadow”. What the caption names stays apart from what is learnt.

After a run, the node shows what it found and what looks wrong.
"""

_PLAIN_TRAIN = """\
**0** in steps, rank and learning_rate means the default of your model's family.

A checkpoint is kept every few minutes: a cancelled run goes on when you queue it again.

The LoRA is saved to your loras folder, the finished run to *output/pastiche*.
"""

_PLAIN_PAINT = """\
Write the rare word to trigger the LoRA. Both pictures start from one seed.

Lower **strength_model** when the training pictures shine through.
"""

TRAIN_PLAIN_LORA = Layout(
    nodes={
        "start": note(_PLAIN, (0, 0), (360, 380), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 510), (360, 98), "", {"ckpt_name": SDXL}),
        "pictures": Node(
            "PasticheLoadTrainingImages",
            (440, 50),
            (360, 320),
            "",
            {"folder": "training_pictures", "caption": "a photo of a sbu dog"},
        ),
        "captions_note": note(_CAPTIONS, (440, 440), (360, 230), "About pictures and captions"),
        "train": Node(
            "PasticheTrainPlainLora",
            (880, 50),
            (400, 1150),
            "",
            {"run_name": "my_lora"},
            {
                "model": ("checkpoint", 0),
                "clip": ("checkpoint", 1),
                "vae": ("checkpoint", 2),
                "images": ("pictures", 0),
                "captions": ("pictures", 1),
                "masks": ("pictures", 2),
                "settings": ("settings", 0),
            },
        ),
        "settings": Node("PasticheTrainingSettings", (440, 830), (360, 780)),
        "train_note": note(_PLAIN_TRAIN, (1320, 50), (360, 230), "About training"),
        "save": Node(
            "PasticheSaveLora",
            (1320, 350),
            (360, 260),
            "",
            {"filename": "my_lora"},
            {"lora": ("train", 0)},
        ),
        "losses": Node(
            "LossGraphNode",
            (1320, 670),
            (360, 550),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 1)},
        ),
        "prompt": Node(
            "PrimitiveStringMultiline",
            (1760, 50),
            (400, 120),
            "Prompt",
            {"value": "a photo of a sbu dog in the snow"},
        ),
        "positive": Node(
            "CLIPTextEncode",
            (1760, 230),
            (400, 80),
            "Positive prompt",
            {},
            {"clip": ("checkpoint", 1), "text": ("prompt", 0)},
        ),
        **shared_nodes(1760, "Seed of both pictures"),
        "paint_note": note(_PLAIN_PAINT, (1760, 870), (400, 170), "About painting"),
        **sampler_column(2240, ("checkpoint", 0), ("positive", 0), "plain", "Plain"),
        "apply": Node(
            "PasticheApplyLora",
            (2680, 50),
            (360, 150),
            "",
            {},
            {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "lora": ("train", 0)},
        ),
        **sampler_column(2680, ("apply", 0), ("positive", 0), "lora", "With the LoRA"),
    },
    groups=(
        Group("1 · Your pictures", (420, -30), (400, 720)),
        Group("2 · Model", (-20, 430), (400, 200)),
        Group("Only if you want other settings", (420, 750), (400, 880)),
        Group("3 · Learn", (860, -30), (840, 1270)),
        Group("4 · What to paint", (1740, -30), (440, 1270)),
        Group("5 · Without the LoRA", (2220, -30), (400, 1270)),
        Group("6 · With the LoRA", (2660, -30), (400, 1270)),
    ),
)
