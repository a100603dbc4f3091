"""Define the arms of the study: ways to make one LoRA of a content and a style."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pack.lora_ops.halves import Role
from pack.nodes.break_for_make.make import MakeTrainer, make_loras
from pack.nodes.break_for_make.train_half import HalfTrainer
from pack.nodes.lora.apply import apply_lora
from pack.nodes.plain.train import PlainTrainer
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.run import run_training
from pack.training import LoraState, TrainingSettings
from pack.training.recipes.break_for_make import HALF
from pack.training.recipes.single import LORA

from ..shared.toy_base import Drawing, ToyBase, image_of
from ..toyworld.scenes import BOAT_SCENES, PAIR_SCENES
from ..toyworld.world import Scene, Thing, caption

AUXILIARY = 3  # auxiliary pictures in each step, next to a main picture
OTHER_CONTENTS = tuple(
    Scene((Thing(kind, colour),), background, seed=31 + number)
    for number, (kind, colour, background) in enumerate(
        (
            ("tree", "red", "snow"),
            ("star", "blue", "brick"),
            ("ring", "green", "sand"),
            ("moon", "yellow", "night"),
            ("cross", "purple", "snow"),
            ("ball", "red", "brick"),
        )
    )
)
OTHER_STYLES = tuple(
    scene.with_style(style)
    for scene, style in zip(
        OTHER_CONTENTS,
        ("comic", "watercolor", "chalk", "sketch", "pixel", "comic"),
        strict=True,
    )
)
SETTINGS = TrainingSettings(schedule="linear", targets="all linear")


@dataclass(frozen=True)
class Budget:
    """Steps, ranks and learning rates, the same in every arm that has the stage.

    Args:
        content: Steps of a content half; a step sees a main and three auxiliary pictures.
        style: Steps of a style half; the released scripts give contents nine times as many.
        make: Steps of the joint fine-tune; a step sees a content and a style picture.
        rank: Rank of halves and made LoRAs.
        half_rate: Learning rate of a half.
        make_rate: Learning rate of the fine-tune.
        adamw_rate: Learning rate of the fine-tune without the preconditioner, searched separately.
        plain_rank: Rank of the ordinary LoRAs, which gives about as many parameters as the halves.
        plain_rate: Learning rate of the ordinary LoRAs.
    """

    content: int
    style: int
    make: int
    rank: int
    half_rate: float
    make_rate: float
    adamw_rate: float
    plain_rank: int
    plain_rate: float

    @property
    def rows(self) -> int:
        """Return the number of pictures that all stages see, with repetitions."""
        return (self.content + self.style) * (1 + AUXILIARY) + 2 * self.make


BUDGET = Budget(
    content=300,
    style=100,
    make=800,
    rank=64,
    half_rate=3e-3,
    make_rate=3e-3,
    adamw_rate=1e-3,
    plain_rank=32,
    plain_rate=5e-4,
)


@dataclass(frozen=True)
class Cell:
    """A content, a style and a seed, with a cache of the LoRAs trained for them."""

    base: ToyBase
    budget: Budget
    kind: str
    style: str
    seed: int
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def contents(self) -> list[Scene]:
        """Return the content's scenes: plain, in half of the colours and on half of the grounds."""
        return [replace(s, things=(Thing(self.kind, s.things[0].colour),)) for s in BOAT_SCENES]

    @property
    def styles(self) -> list[Scene]:
        """Return the style's scenes: four things that the base knows."""
        return [scene.with_style(self.style) for scene in PAIR_SCENES]


def _images(scenes: list[Scene]) -> list[torch.Tensor]:
    return [image_of(scene) for scene in scenes]


def half(cell: Cell, role: Role, share: float = 1.0, **options: Any) -> LoraState:
    """Return a trained half; a finished run with equal options is reused.

    Args:
        cell: Content, style and seed.
        role: Role of the half.
        share: Multiplier of the budget's steps.
        options: Other fields of the request; ``alone`` trains without auxiliary pictures on as
            many rows.
    """
    key = ("half", role, share, tuple(sorted(options.items())))
    if key not in cell.cache:
        alone = options.pop("alone", False)
        main = cell.contents if role == "content" else cell.styles
        other = list(OTHER_STYLES if role == "content" else OTHER_CONTENTS)
        request = HalfTrainer(
            base=Base(cell.base.model, cell.base.clip, cell.base.vae),
            role=role,
            images=_images(main),
            prompt=[caption(scene) for scene in main],
            token=cell.kind if role == "content" else cell.style,
            auxiliary_images=() if alone else _images(other),
            auxiliary_prompts=() if alone else [caption(scene) for scene in other],
            steps=round(getattr(cell.budget, role) * share) * ((1 + AUXILIARY) if alone else 1),
            rank=cell.budget.rank,
            learning_rate=cell.budget.half_rate,
            seed=cell.seed,
            run_name=f"{cell.kind if role == 'content' else cell.style} half",
            settings=SETTINGS,
            **options,
        )
        cell.cache[key] = run_training(request).loras[HALF]
    return cell.cache[key]


def make(
    cell: Cell,
    content: LoraState,
    style: LoraState,
    optimizer: str = "Scaled AdamW",
    **options: Any,
) -> LoraState:
    """Return the LoRA of two halves after the budget's fine-tune."""
    scaled = optimizer == "Scaled AdamW"
    values = {
        "optimizer": optimizer,
        "steps": cell.budget.make,
        "base": Base(cell.base.model, cell.base.clip, cell.base.vae),
        "content_images": _images(cell.contents),
        "content_prompt": [caption(scene) for scene in cell.contents],
        "style_images": _images(cell.styles),
        "style_prompt": [caption(scene) for scene in cell.styles],
        "learning_rate": cell.budget.make_rate if scaled else cell.budget.adamw_rate,
        "seed": cell.seed,
        "run_name": f"{cell.kind} {cell.style}",
        "settings": SETTINGS,
        **options,
    }
    return make_loras(MakeTrainer(contents=[content], styles=[style], **values))[0][0]


def plain(cell: Cell, scenes: list[Scene], rows: int, batch: int) -> LoraState:
    """Return an ordinary LoRA of the scenes that has seen ``rows`` pictures."""
    request = PlainTrainer(
        base=Base(cell.base.model, cell.base.clip, cell.base.vae),
        images=_images(scenes),
        captions=[caption(scene) for scene in scenes],
        steps=rows // batch,
        rank=cell.budget.plain_rank,
        learning_rate=cell.budget.plain_rate,
        seed=cell.seed,
        run_name="plain",
        settings=replace(SETTINGS, batch_size=batch),
    )
    return run_training(request).loras[LORA]


def _all_stages(cell: Cell, optimizer: str = "Scaled AdamW", **options: Any) -> LoraState:
    halves = (half(cell, role, **options) for role in ("content", "style"))
    return make(cell, *halves, optimizer=optimizer)


def _short_style(cell: Cell, optimizer: str) -> LoraState:
    content, style = half(cell, "content"), half(cell, "style", share=0.25)
    return make(cell, content, style, optimizer=optimizer)


def _joint(cell: Cell) -> LoraState:
    # The four style pictures appear twice, so that content and style have equal weight.
    return plain(cell, [*cell.contents, *cell.styles, *cell.styles], cell.budget.rows, 2)


def _sum(cell: Cell, strength: float) -> LoraState:
    rows = cell.budget.rows // 2
    if "sum" not in cell.cache:
        cell.cache["sum"] = [
            plain(cell, scenes, rows, 2) for scenes in (cell.contents, cell.styles)
        ]
    one, other = cell.cache["sum"]
    return LoraState({key: _stacked(key, one[key], other[key], strength) for key in one})


def _stacked(key: str, one: torch.Tensor, other: torch.Tensor, strength: float) -> torch.Tensor:
    """Return a tensor of the LoRA that is the sum of two, each at ``strength``."""
    if key.endswith("alpha"):
        return one + other
    return (
        torch.cat([one * strength, other * strength], 1)
        if key.endswith("lora_up.weight")
        else torch.cat([one, other], 0)
    )


ARMS: Mapping[str, Callable[[Cell], LoraState]] = {
    "all stages": _all_stages,
    "make with 0 steps": lambda cell: make(
        cell, half(cell, "content"), half(cell, "style"), steps=0
    ),
    "without the preconditioner": lambda cell: _all_stages(cell, "AdamW"),
    "without the orthogonal prior": lambda cell: _all_stages(cell, start="gaussian"),
    "without multi-correspondence": lambda cell: _all_stages(cell, alone=True),
    "owner swapped": lambda cell: _all_stages(cell, content_owns="up"),
    "joint LoRA": _joint,
    "sum of two LoRAs, each at 1": lambda cell: _sum(cell, 1.0),
    "sum of two LoRAs, each at 0.7": lambda cell: _sum(cell, 0.7),
    "style half a quarter as long": lambda cell: _short_style(cell, "Scaled AdamW"),
    "style half a quarter as long, AdamW": lambda cell: _short_style(cell, "AdamW"),
}


def draw(base: ToyBase, lora: LoraState, scenes: list[Scene], seed: int) -> torch.Tensor:
    """Return one picture per scene with the LoRA on the base, ``(scene, 64, 64, 3)`` in 0..1."""
    model, _ = apply_lora(base.model, None, lora, 1.0, 0.0)
    return replace(base, model=model).draw(scenes, seed, Drawing("plain"))
