"""A LoRA in one half of the canvas: how well it does there, and what shows in the other half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pack.nodes.lora.apply import apply_lora
from pack.training import LoraState
from pair_study.base import ToyBase
from plain_study.arms import PlainTraining, learn_with_pack
from toyworld.examples import BOAT_SCENES
from toyworld.judge import Judge
from toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing, style_words

from .layouts import CANVASES, Said, draw, place_words, twice, windows

CANVAS = "2:1"
KIND, STYLE = "boat", "mosaic"
STEPS, RATE = 600, 2e-3
HOW = {"class": ("logit-normal", "all linear"), "style": ("uniform", "attention")}
"""Noise levels and layers: what of a few tried learnt best, with noise that is not drawn here."""
_FIRST = {"class": 20_000, "style": 30_000}


@dataclass
class Cell:
    """One adapter of one training.

    Args:
        base: The toy base.
        judge: Reads the pictures.
        adapter: One of ``ADAPTERS``.
        seed: Of the training; pictures are drawn on noise of its own.
    """

    base: ToyBase
    judge: Judge
    adapter: str
    seed: int
    _lora: LoraState | None = None

    @property
    def lora(self) -> Any:
        """The trained LoRA."""
        if self._lora is None:
            self._lora = _learnt(self.adapter, self.base, self.seed)
        return self._lora

    def scenes(self, start: int, count: int) -> list[Scene]:
        """Scenes of the adapter's thing on the left and another on the right."""
        generator = np.random.RandomState(8000 + 100 * self.seed + start)
        scenes = []
        for _ in range(count):
            one, other = generator.permutation(len(BASE_CLASSES))[:2]
            first, second = generator.permutation(len(COLOURS))[:2]
            names = list(COLOURS)
            kind = KIND if self.adapter == "class" else BASE_CLASSES[one]
            things = (Thing(kind, names[first]), Thing(BASE_CLASSES[other], names[second]))
            scenes.append(Scene(things, BACKGROUNDS[generator.randint(len(BACKGROUNDS))]))
        return scenes

    def words(self, scene: Scene) -> str:
        """The prompt of the adapter's half."""
        text = twice(scene, 0)
        return text if self.adapter == "class" else f"{text} {style_words(STYLE)}"

    def noise(self, start: int) -> int:
        """The seed of a batch's noise."""
        return _FIRST[self.adapter] + 1000 * self.seed + start

    def read(self, pictures: torch.Tensor, side: int) -> list[bool]:
        """Whether the adapter shows in a half."""
        readings = [self.judge.read(window) for window in windows(pictures, side)]
        wanted, head = (KIND, "object") if self.adapter == "class" else (STYLE, "style")
        return [
            any(getattr(reading, head)[i] == wanted for reading in readings)
            for i in range(len(pictures))
        ]


def wide_scenes(adapter: str) -> list[Scene]:
    """Training pictures of the canvas: two things, one or both of them boats; or all in the style.

    What is learnt of square pictures alone fails on the whole wide canvas, with regions or without;
    and a region's text names its thing twice, so some pictures show two.
    """
    width, height = CANVASES[CANVAS]
    scenes = []
    for number, scene in enumerate(BOAT_SCENES):
        colours = [colour for colour in COLOURS if colour != scene.things[0].colour]
        one, other = BASE_CLASSES[number % 8], BASE_CLASSES[(number + 3) % 8]
        kind, style = (KIND, scene.style) if adapter == "class" else (one, STYLE)
        for second in (other, kind):
            things = (
                Thing(kind, scene.things[0].colour),
                Thing(second, colours[number % len(colours)]),
            )
            scenes.append(
                replace(
                    scene,
                    things=things if number % 2 else things[::-1],
                    style=style,
                    width=width,
                    height=height,
                )
            )
    return scenes


def _learnt(adapter: str, base: ToyBase, seed: int) -> Any:
    how = PlainTraining(STEPS, RATE, seed, *HOW[adapter])
    return learn_with_pack(base, how, f"wide {adapter}", wide_scenes(adapter))


def _regional(cell: Cell, start: int, count: int, loras: bool) -> torch.Tensor:
    said = [
        Said(
            place_words(scene),
            [cell.words(scene), twice(scene, 1)],
            (((cell.lora, 1.0),) if loras else (), ()),
        )
        for scene in cell.scenes(start, count)
    ]
    return draw(cell.base, said, CANVAS, cell.noise(start))


def _in_region(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, True), 0)


def _leak(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, True), 1)


def _leak_of_base(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, False), 1)


def _everywhere(cell: Cell, start: int, count: int) -> list[bool]:
    model, _ = apply_lora(cell.base.model, None, cell.lora, 1.0, 0.0)
    base = replace(cell.base, model=model)
    said = [Said(cell.words(scene)) for scene in cell.scenes(start, count)]
    return cell.read(draw(base, said, CANVAS, cell.noise(start)), 0)


ADAPTERS = ("class", "style")
REGION, FULL = "in its region", "on the whole model and canvas"
LEAK, LEAK_OF_BASE = "in the other region", "in the other region, without the LoRA"
ARMS: Mapping[str, Callable[[Cell, int, int], list[bool]]] = {
    REGION: _in_region,
    FULL: _everywhere,
    LEAK: _leak,
    LEAK_OF_BASE: _leak_of_base,
}
