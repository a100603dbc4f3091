"""What the judge reads on round-tripped true renders: only that is scored."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from .data import cache_folder
from .judge import COLOURLESS, TEST_SEEDS, Judge, Reading, through_vae
from .render import render
from .vae import TinyVAE
from .world import BACKGROUNDS, BASE_CLASSES, BASE_STYLES, STYLES, Scene, random_scene

THRESHOLD = 0.95


def rights(scenes: list[Scene], reading: Reading) -> dict[str, list[bool]]:
    """Per attribute, whether each scene's only object reads as it should."""
    return {
        "object": [r == s.things[0].kind for r, s in zip(reading.object, scenes, strict=True)],
        "colour": [r == s.things[0].colour for r, s in zip(reading.colour, scenes, strict=True)],
        "background": [r == s.background for r, s in zip(reading.background, scenes, strict=True)],
        "style": [r == s.style for r, s in zip(reading.style, scenes, strict=True)],
    }


def to_tensor(scenes: list[Scene]) -> Tensor:
    """Renders as floats (batch, 3, height, width) in 0..1."""
    pictures = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def true_readings(
    judge: Judge, vae: TinyVAE, style: str, count: int
) -> tuple[list[Scene], Reading]:
    """Fresh true renders of a style, through the VAE, and the judge's reading of them."""
    generator = np.random.RandomState(TEST_SEEDS + STYLES.index(style))
    scenes = [random_scene(generator, held_out=None, styles=(style,)) for _ in range(count)]
    pictures = to_tensor(scenes)
    decoded = torch.cat([through_vae(vae, part) for part in pictures.split(50)])
    return scenes, judge.read(decoded.permute(0, 2, 3, 1))


def ceilings(judge: Judge, vae: TinyVAE, count: int = 200) -> dict[str, dict[str, float]]:
    """The shares that are read rightly on round-tripped true renders, kept beside the judge.

    Rows are styles; ``<style> on <background>``, where ``style`` alone counts; and ``classes``,
    over all base styles together.
    """
    stored = cache_folder() / f"ceilings_{judge.hash}_{count}.json"
    if stored.exists():
        return json.loads(stored.read_text(encoding="utf-8"))
    table: dict[str, dict[str, float]] = {}
    classes: dict[str, list[bool]] = {kind: [] for kind in BASE_CLASSES}
    for style in STYLES:
        scenes, reading = true_readings(judge, vae, style, count)
        right = rights(scenes, reading)
        table[style] = {name: float(np.mean(values)) for name, values in right.items()}
        for background in BACKGROUNDS:
            pairs = zip(right["style"], scenes, strict=True)
            flags = [flag for flag, scene in pairs if scene.background == background]
            table[f"{style} on {background}"] = {"style": float(np.mean(flags))}
        if style in BASE_STYLES:
            for scene, fine in zip(scenes, right["object"], strict=True):
                classes[scene.things[0].kind].append(fine)
    table["classes"] = {kind: float(np.mean(values)) for kind, values in classes.items()}
    stored.write_text(json.dumps(table), encoding="utf-8")
    return table


def is_scored(table: dict[str, dict[str, float]], scene: Scene, attribute: str) -> bool:
    """Whether an attribute of a scene can be read well enough to be scored."""
    if attribute == "style":
        return table[f"{scene.style} on {scene.background}"]["style"] >= THRESHOLD
    if attribute == "colour" and scene.style == COLOURLESS:
        return False
    return table[scene.style][attribute] >= THRESHOLD
