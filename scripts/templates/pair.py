"""The layouts of the templates pair_customization, use_a_style and resume_and_extend."""

from __future__ import annotations

from .parts import SDXL, Group, Layout, Node, note, sampler_column, shared_nodes


def _style_guidance(left: int, style_lora: tuple[str, int]) -> Node:
    inputs = {"model": ("checkpoint", 0), "style_lora": style_lora, "style": ("prompts", 1)}
    return Node("PasticheApplyStyleGuidance", (left, 50), (360, 260), "", {}, inputs)


def _prompt_column(left: int, style_lora: tuple[str, int]) -> dict[str, Node]:
    """Return the column of the prompts and the other nodes that all pictures share."""
    return {
        "prompts": Node(
            "PasticheStylePrompts",
            (left, 50),
            (400, 260),
            "",
            {"prompt": "A photo of a cat"},
            {"clip": ("checkpoint", 1), "style_lora": style_lora},
        ),
        **shared_nodes(left, "Seed of all pictures"),
        "prompt_note": note(_PROMPT, (left, 870), (400, 170), "About prompts"),
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
Same size and same composition work best. Other sizes are scaled and cropped in the same way, and \
the train node shows the result after the run.

Do the two pictures differ in **style only**? Whatever else differs is learnt too.
"""

_TRAIN = """\
**content_prompt** says what the picture shows, with a rare word such as *sbu* before the subject: \
“A photo of a sbu dog”.

**style_words** is what you will write when you want the style: “in digital art style”.

**0** in steps, rank and learning_rate means the default of your model's family.

The LoRA is saved to your loras folder, the finished run to *output/pastiche*.
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
        "start": note(_START, (0, 0), (360, 340), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 470), (360, 98), "", {"ckpt_name": SDXL}),
        "before": Node("LoadImage", (440, 50), (300, 400), "Before", {"image": "pair_before.png"}),
        "after": Node("LoadImage", (440, 510), (300, 400), "After", {"image": "pair_after.png"}),
        "pair_note": note(_PAIR, (440, 980), (300, 210), "About the pair"),
        "settings": Node("PasticheTrainingSettings", (0, 670), (360, 780)),
        "train": Node(
            "PasticheTrainPair",
            (820, 50),
            (400, 1170),
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
        "train_note": note(_TRAIN, (1260, 50), (360, 250), "About training"),
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
        **_prompt_column(1700, ("train", 0)),
        "guidance_note": note(_GUIDANCE, (2180, 50), (360, 250), "About strength"),
        **sampler_column(2180, ("checkpoint", 0), ("prompts", 0), "plain", "Plain"),
        "guidance": _style_guidance(2620, ("train", 0)),
        **sampler_column(2620, ("guidance", 0), ("prompts", 0), "styled", "Styled"),
    },
    groups=(
        Group("1 · Model", (-20, 390), (400, 200)),
        Group("Settings, if you need them", (-20, 610), (400, 860)),
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
        "start": note(_USE, (0, 0), (360, 260), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 380), (360, 98), "", {"ckpt_name": SDXL}),
        "lora": Node(
            "PasticheLoadLora", (0, 530), (360, 100), "", {"lora_name": "my_style.safetensors"}
        ),
        "compare_note": note(_COMPARE, (0, 700), (360, 190), "Which one?"),
        **_prompt_column(440, ("lora", 0)),
        "guidance_note": note(_GUIDANCE, (920, 50), (360, 250), "About strength"),
        **sampler_column(920, ("checkpoint", 0), ("prompts", 0), "plain", "Plain"),
        "guidance": _style_guidance(1360, ("lora", 0)),
        **sampler_column(1360, ("guidance", 0), ("prompts", 0), "styled", "Style guidance"),
        "apply": Node(
            "PasticheApplyLora",
            (1800, 50),
            (360, 150),
            "",
            {},
            {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "lora": ("lora", 0)},
        ),
        **sampler_column(1800, ("apply", 0), ("prompts", 1), "lora", "Ordinary LoRA"),
    },
    groups=(
        Group("1 · Model and style", (-20, 300), (400, 350)),
        Group("2 · What to paint", (420, -30), (440, 1270)),
        Group("3 · Without the style", (900, -30), (400, 1270)),
        Group("4 · With style guidance", (1340, -30), (400, 1270)),
        Group("5 · As an ordinary LoRA", (1780, -30), (400, 1270)),
    ),
)

_RESUME = """\
## Stop, lose nothing, train on

1. Choose your checkpoint and your two pictures, as in *pair_customization*.
2. Press **Run**. Checkpoints are kept under *output/pastiche* while it trains.

**Cancelled, out of memory, crashed, restarted?** Press **Run** again. It goes on from the last \
step that was kept, and the result is exactly that of an uninterrupted run. The train node says \
which step that was.

**Enough already?** *Stop and keep* on the train node ends the training and passes on what was \
learnt. Run then returns it until you raise *steps*.

**Not enough?** Raise **steps** and press **Run**: only the steps that are missing are trained.
"""

_KEPT = """\
**save_every_steps** and **save_every_minutes** say how often a checkpoint is kept, \
**keep_checkpoints** how many stay.

Settings that only save memory may be changed between two runs: *memory*, *checkpointing*, \
*offload*, *rows_per_pass*. The training goes on.
"""

_NEW_RUN = """\
Other pictures, words, seeds or settings make **another run**: it starts from step 1, the node says \
what changed, and the first run is kept. Change it back, and the first run goes on.

With the schedules *linear* and *cosine*, more steps make another run too: the learning rate of \
every step depends on their number.
"""

RESUME_AND_EXTEND = Layout(
    nodes={
        "start": note(_RESUME, (0, 0), (400, 480), "Start here"),
        "checkpoint": Node("CheckpointLoaderSimple", (0, 620), (400, 98), "", {"ckpt_name": SDXL}),
        "before": Node("LoadImage", (480, 50), (300, 400), "Before", {"image": "pair_before.png"}),
        "after": Node("LoadImage", (480, 510), (300, 400), "After", {"image": "pair_after.png"}),
        "kept_note": note(_KEPT, (860, 50), (400, 210), "About checkpoints"),
        "settings": Node(
            "PasticheTrainingSettings", (860, 320), (400, 780), "", {"save_every_steps": 50}
        ),
        "train": Node(
            "PasticheTrainPair",
            (1340, 50),
            (400, 880),
            "",
            {
                "content_prompt": "A photo of a sbu dog",
                "style_words": "in digital art style",
                "steps": 300,
                "run_name": "my_long_run",
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
        "new_run_note": note(_NEW_RUN, (1780, 50), (360, 250), "What makes another run"),
        "save": Node(
            "PasticheSaveLora",
            (1780, 350),
            (360, 260),
            "",
            {"filename": "my_long_run"},
            {"lora": ("train", 0), "image": ("after", 0)},
        ),
        "losses": Node(
            "LossGraphNode",
            (1780, 670),
            (360, 550),
            "",
            {"filename_prefix": "pastiche_loss"},
            {"loss": ("train", 2)},
        ),
        **_prompt_column(2220, ("train", 0)),
        **sampler_column(2700, ("checkpoint", 0), ("prompts", 0), "plain", "Plain"),
        "guidance": _style_guidance(3140, ("train", 0)),
        **sampler_column(3140, ("guidance", 0), ("prompts", 0), "styled", "Styled"),
    },
    groups=(
        Group("1 · Model", (-20, 540), (440, 200)),
        Group("2 · Your pair", (460, -30), (340, 1270)),
        Group("3 · How often to keep a checkpoint", (840, -30), (440, 1270)),
        Group("4 · Learn; raise steps to go on", (1320, -30), (840, 1270)),
        Group("5 · What to paint", (2200, -30), (440, 1270)),
        Group("6 · Without the style", (2680, -30), (400, 1270)),
        Group("7 · With the style", (3120, -30), (400, 1270)),
    ),
)
