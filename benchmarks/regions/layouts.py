"""Draw two things on one canvas, with regions and without, and read the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pack.lora_ops import Box, Region
from pack.nodes.regions.layout.sets import KEEPS_A_CELL
from pack.nodes.regions.sampling.apply import with_regions
from pack.nodes.regions.sampling.loras import AREA
from pack.nodes.regions.sampling.prompts import RegionConditioning, RegionPrompts
from pack.nodes.regions.sampling.run import MEAN

import nodes

from ..shared.toy_base import CFG, SAMPLER, SCHEDULER, STEPS, ToyBase
from ..toyworld.judge import Judge
from ..toyworld.world import SIDE, Scene, Thing, caption, random_scene

# Width and height. The judge reads squares of 64 pixels, and the base has never seen the square
# canvas.
CANVASES: dict[str, tuple[int, int]] = {"2:1": (2 * SIDE, SIDE), "square": (2 * SIDE, 2 * SIDE)}
HALVES = (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
OVERLAPPING = (Box(0, 0, 0.625, 1), Box(0.375, 0, 1, 1))
_STRIDE = 16
NAMES = ("left", "right")


@dataclass(frozen=True)
class PicturePrompts:
    """The prompts of one picture.

    Args:
        positive: Prompt of the sampler.
        regions: Prompt of each half; empty for no regions.
        loras: LoRAs of each half.
    """

    positive: str
    regions: Sequence[str] = ()
    loras: Sequence[tuple[Any, ...]] = field(default=((), ()))


def layouts_of(canvas: str, count: int) -> list[Scene]:
    """Return scenes of two things that differ in kind and colour, on random grounds."""
    generator = np.random.RandomState(7000 + list(CANVASES).index(canvas))
    width, height = CANVASES[canvas]
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(generator, objects=2, held_out=None, styles=("plain",))
        one, other = scene.things
        if one.kind != other.kind and one.colour != other.colour:
            scenes.append(replace(scene, width=width, height=height))
    return scenes


def with_one_thing(scene: Scene, side: int) -> Scene:
    """Return the scene with one of its things."""
    return replace(scene, things=(scene.things[side],))


def place_words(scene: Scene) -> str:
    """Return a caption that names the ground and the places of a scene, but not its things."""
    return f"a thing on the left and a thing on the right on {scene.background}"


def repeated_caption(scene: Scene, side: int) -> str:
    """Return a caption that names one thing of the scene twice, so that only its region places it.

    The base decides how many things it draws by its self-attention, which regions do not separate.
    If each region's prompt names one thing, one of the regions often stays empty.
    """
    return caption(replace(scene, things=(scene.things[side],) * 2))


def draw(
    base: ToyBase,
    picture_prompts: Sequence[PicturePrompts],
    canvas: str,
    seed: int,
    boxes: Sequence[Box] = HALVES,
    positive: list | None = None,
) -> torch.Tensor:
    """Return a picture for each entry of the prompts, ``(picture, height, width, 3)``.

    A batch has one prompt for each region, so pictures with regions are drawn one at a time.
    """
    if picture_prompts[0].regions:
        pictures = []
        for number, one in enumerate(picture_prompts):
            regions = [Region(name, box) for name, box in zip(NAMES, boxes, strict=True)]
            prompts = tuple(
                RegionConditioning(name, base.prompt(text), None, tuple(loras))
                for name, text, loras in zip(NAMES, one.regions, one.loras, strict=True)
            )
            model = with_regions(
                base.model, regions, RegionPrompts("", prompts), KEEPS_A_CELL, MEAN, False, AREA
            )
            prompt = base.prompt(one.positive)
            pictures.append(sample(base, model, prompt, canvas, 1, seed, number))
        return torch.cat(pictures)
    prompt = (
        base.batch_prompt([one.positive for one in picture_prompts])
        if positive is None
        else positive
    )
    return sample(base, base.model, prompt, canvas, len(picture_prompts), seed)


def sample(
    base: ToyBase, model: Any, positive: list, canvas: str, count: int, seed: int, row: int = 0
) -> torch.Tensor:
    """Return pictures from the stock nodes; ``row`` selects the noise of one picture of a batch."""
    width, height = CANVASES[canvas]
    latent = nodes.EmptyLatentImage().generate(width, height, count)[0]
    if row or count == 1:
        latent = {**latent, "batch_index": [row]}
    sampled = nodes.KSampler().sample(
        model, seed, STEPS, CFG, SAMPLER, SCHEDULER, positive, base.prompt(""), latent
    )[0]
    return nodes.VAEDecode().decode(base.vae, sampled)[0].clone()


def masked_prompts(base: ToyBase, texts: Sequence[str]) -> list:
    """Return core's masked conditioning, with each thing's prompt in its half."""
    width, height = CANVASES["2:1"]
    parts = []
    for side, text in enumerate(texts):
        mask = torch.zeros(1, height, width)
        mask[..., side * width // 2 : (side + 1) * width // 2] = 1.0
        prompt = base.prompt(text)
        parts += nodes.ConditioningSetMask().append(prompt, mask, "default", 1.0)[0]
    return parts


def windows(pictures: torch.Tensor, side: int | None) -> list[torch.Tensor]:
    """Return the squares of 64 pixels that the judge searches for a thing.

    Args:
        pictures: ``(picture, height, width, 3)``.
        side: Half of the width, 0 or 1; None for the whole width.
    """
    _, height, width, _ = pictures.shape
    left, right = (0, width) if side is None else (side * width // 2, (side + 1) * width // 2)
    return [
        pictures[:, top : top + SIDE, x : x + SIDE]
        for top in range(0, height - SIDE + 1, _STRIDE)
        for x in range(left, right - SIDE + 1, _STRIDE)
    ]


def read_things(
    judge: Judge, pictures: torch.Tensor, things: Sequence[Thing], side: int | None
) -> list[list[bool]]:
    """Return two flags per picture: its thing's kind is found, and the kind in its colour."""
    readings = [judge.read(window) for window in windows(pictures, side)]
    flags = []
    for i, thing in enumerate(things):
        kinds = [reading.object[i] == thing.kind for reading in readings]
        colours = [
            kind and reading.colour[i] == thing.colour
            for kind, reading in zip(kinds, readings, strict=True)
        ]
        flags.append([any(kinds), any(colours)])
    return flags


def both_halves(judge: Judge, pictures: torch.Tensor, scenes: Sequence[Scene]) -> list:
    """Return flags ``(picture, thing, flag)``, with each thing searched in its half."""
    sides = [
        read_things(judge, pictures, [scene.things[side] for scene in scenes], side)
        for side in range(2)
    ]
    return [list(pair) for pair in zip(*sides, strict=True)]


Arm = Callable[[ToyBase, Judge, str, Sequence[Scene], int], list]
Words = Callable[[Scene, int], str]


def _one(scene: Scene, side: int) -> str:
    return caption(with_one_thing(scene, side))


def _regional(boxes: Sequence[Box], words: Words) -> Arm:
    def arm(base: ToyBase, judge: Judge, canvas: str, scenes: Sequence[Scene], seed: int) -> list:
        picture_prompts = [
            PicturePrompts(place_words(scene), [words(scene, side) for side in range(2)])
            for scene in scenes
        ]
        return both_halves(judge, draw(base, picture_prompts, canvas, seed, boxes), scenes)

    return arm


def _masked(words: Words) -> Arm:
    def arm(base: ToyBase, judge: Judge, canvas: str, scenes: Sequence[Scene], seed: int) -> list:
        pictures = []
        for number, scene in enumerate(scenes):
            prompt = masked_prompts(base, [words(scene, side) for side in range(2)])
            pictures.append(sample(base, base.model, prompt, canvas, 1, seed, number))
        return both_halves(judge, torch.cat(pictures), scenes)

    return arm


def _plain(base: ToyBase, judge: Judge, canvas: str, scenes: Sequence[Scene], seed: int) -> list:
    pictures = draw(base, [PicturePrompts(caption(scene)) for scene in scenes], canvas, seed)
    return both_halves(judge, pictures, scenes)


def _alone(base: ToyBase, judge: Judge, canvas: str, scenes: Sequence[Scene], seed: int) -> list:
    """Return flags of each thing drawn alone on the canvas and searched everywhere."""
    sides = []
    for side in range(2):
        singles = [with_one_thing(scene, side) for scene in scenes]
        picture_prompts = [PicturePrompts(caption(scene)) for scene in singles]
        pictures = draw(base, picture_prompts, canvas, seed + 5000 * side)
        sides.append(read_things(judge, pictures, [scene.things[0] for scene in singles], None))
    return [list(pair) for pair in zip(*sides, strict=True)]


ALONE = "each alone on that canvas"
OURS = "regional attention"
OURS_ONE = "regional attention, words of one thing"
MASKED_ONE = "core's masked conditioning, words of one thing"
ARMS: Mapping[str, Arm] = {
    OURS: _regional(HALVES, repeated_caption),
    "regional attention, regions that overlap by a quarter": _regional(
        OVERLAPPING, repeated_caption
    ),
    OURS_ONE: _regional(HALVES, _one),
    "core's masked conditioning": _masked(repeated_caption),
    MASKED_ONE: _masked(_one),
    "the base's prompt for two things": _plain,
    ALONE: _alone,
}


def arms_of(canvas: str) -> list[str]:
    """Return the arms of a canvas; prompts of one thing are only drawn on the first canvas."""
    first = canvas == next(iter(CANVASES))
    return [arm for arm in ARMS if first or arm not in (OURS_ONE, MASKED_ONE)]
