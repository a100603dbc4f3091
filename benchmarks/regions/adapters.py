"""Measure how well a LoRA works in its region, and how much it leaks into the other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pack.nodes.lora.apply import apply_lora
from pack.training import LoraState

from ..shared.plain_lora import PlainTraining, learn_with_pack
from ..shared.toy_base import ToyBase
from ..toyworld.judge import Judge
from ..toyworld.scenes import BOAT_SCENES
from ..toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing, style_words
from .layouts import CANVASES, PicturePrompts, draw, place_words, repeated_caption, windows

CANVAS = "2:1"
KIND, STYLE = "boat", "mosaic"
STEPS, RATE = 600, 2e-3
# Timesteps and layers by adapter: the best of a few, chosen on noise that this study does not use.
TRAINING_OPTIONS = {"class": ("logit-normal", "all linear"), "style": ("uniform", "attention")}
_FIRST_NOISE = {"class": 20_000, "style": 30_000}


@dataclass
class Cell:
    """An adapter of one training.

    Args:
        base: The toy base.
        judge: Network that classifies the pictures.
        adapter: One of ``ADAPTERS``.
        seed: Seed of the training, which also selects the noise of the pictures.
    """

    base: ToyBase
    judge: Judge
    adapter: str
    seed: int
    _lora: LoraState | None = None

    @property
    def lora(self) -> Any:
        """Return the trained LoRA."""
        if self._lora is None:
            self._lora = _train(self.adapter, self.base, self.seed)
        return self._lora

    def scenes(self, start: int, count: int) -> list[Scene]:
        """Return scenes of the adapter's thing on the left and another thing on the right."""
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
        """Return the prompt of the adapter's half."""
        text = repeated_caption(scene, 0)
        return text if self.adapter == "class" else f"{text} {style_words(STYLE)}"

    def noise(self, start: int) -> int:
        """Return the seed of a batch's noise."""
        return _FIRST_NOISE[self.adapter] + 1000 * self.seed + start

    def read(self, pictures: torch.Tensor, side: int) -> list[bool]:
        """Return whether the adapter's class or style shows in a half, for each picture."""
        readings = [self.judge.read(window) for window in windows(pictures, side)]
        wanted, head = (KIND, "object") if self.adapter == "class" else (STYLE, "style")
        return [
            any(getattr(reading, head)[i] == wanted for reading in readings)
            for i in range(len(pictures))
        ]


def wide_scenes(adapter: str) -> list[Scene]:
    """Return the scenes of the training pictures, with two things each on the wide canvas.

    One or both things are boats, or all pictures are in the style. A LoRA trained only on square
    pictures fails on the wide canvas, with regions or without. Some pictures show the same class
    twice, because a region's prompt names its thing twice.
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


def _train(adapter: str, base: ToyBase, seed: int) -> Any:
    training = PlainTraining(STEPS, RATE, seed, *TRAINING_OPTIONS[adapter])
    return learn_with_pack(base, training, f"wide {adapter}", wide_scenes(adapter))


def _regional(cell: Cell, start: int, count: int, loras: bool) -> torch.Tensor:
    picture_prompts = [
        PicturePrompts(
            place_words(scene),
            [cell.words(scene), repeated_caption(scene, 1)],
            (((cell.lora, 1.0),) if loras else (), ()),
        )
        for scene in cell.scenes(start, count)
    ]
    return draw(cell.base, picture_prompts, CANVAS, cell.noise(start))


def _in_region(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, True), 0)


def _leak(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, True), 1)


def _leak_of_base(cell: Cell, start: int, count: int) -> list[bool]:
    return cell.read(_regional(cell, start, count, False), 1)


def _everywhere(cell: Cell, start: int, count: int) -> list[bool]:
    model, _ = apply_lora(cell.base.model, None, cell.lora, 1.0, 0.0)
    base = replace(cell.base, model=model)
    picture_prompts = [PicturePrompts(cell.words(scene)) for scene in cell.scenes(start, count)]
    return cell.read(draw(base, picture_prompts, CANVAS, cell.noise(start)), 0)


ADAPTERS = ("class", "style")
REGION, FULL = "in its region", "on the whole model and canvas"
LEAK, LEAK_OF_BASE = "in the other region", "in the other region, without the LoRA"
ARMS: Mapping[str, Callable[[Cell, int, int], list[bool]]] = {
    REGION: _in_region,
    FULL: _everywhere,
    LEAK: _leak,
    LEAK_OF_BASE: _leak_of_base,
}
