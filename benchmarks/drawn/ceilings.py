"""Measure how well the judge reads true scenes sent through a VAE, and refuse other questions.

The ceiling of an answer is the share of true scenes in which the judge reads it rightly.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .judge import Judge, Reading
from .looks import LOOKS
from .scenes import Scene, Thing, draw
from .vae import TinyVAE, round_trip
from .vocabulary import COLOURS, GROUNDS, LEARNT_SETS, MARKS, STYLES, THINGS

THRESHOLD = 0.95  # lowest ceiling of an answer that a study may score
_TEST_SEEDS = 900_000_000  # first seed of scenes that are never used in training


@dataclass(frozen=True)
class Question:
    """A question to the judge that a study may score.

    Attributes:
        head: ``thing``, ``style``, ``ground``, ``colour`` or ``mark``.
        name: The right answer.
        style: Style of the picture, for heads other than ``style``.
    """

    head: str
    name: str
    style: str = "plain"


class Ceilings:
    """The shares of true scenes that the judge reads rightly.

    Args:
        table: Shares ``{head: {answer: {style: share}}}``; ``style`` has grounds as inner keys.
    """

    def __init__(self, table: dict[str, dict[str, dict[str, float]]]) -> None:
        self.table = table

    @classmethod
    def load(cls, path: Path) -> Ceilings:
        """Read the table that ``measure`` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def ceiling(self, question: Question) -> float:
        """Return the share of true scenes in which the judge gives the right answer."""
        answers = self.table[question.head][question.name]
        if question.head == "style":
            return float(np.mean(list(answers.values())))
        return answers[question.style]

    def require_scored(self, questions: list[Question]) -> None:
        """Raise unless the judge answers all questions well enough.

        Raises:
            ValueError: A ceiling is below ``THRESHOLD``.
        """
        below = [q for q in questions if self.ceiling(q) < THRESHOLD]
        if below:
            worst = min(below, key=self.ceiling)
            raise ValueError(
                f"a study must score only what the judge reads at {THRESHOLD:.2f} or better, got "
                f"{len(below)} below it, the lowest {worst.head} {worst.name!r} in {worst.style} "
                f"at {self.ceiling(worst):.2f}; leave them out"
            )


def _true_scenes() -> list[Scene]:
    """Return scenes for every answer: things and grounds by style, colours, and marks."""
    scenes, seed = [], _TEST_SEEDS
    random = np.random.RandomState(1)
    grounds, things = list(GROUNDS), list(THINGS)
    for style in STYLES:
        for number, name in enumerate(things):
            scenes.append(Scene((Thing(name),), grounds[(seed + number) % 10], style, seed=seed))
            seed += 1
    for style in LEARNT_SETS:
        for colour in COLOURS:
            for _ in range(24):
                name = things[random.randint(len(things))]
                ground = grounds[random.randint(10)]
                scenes.append(Scene((Thing(name, colour),), ground, style, seed=seed))
                seed += 1
    for mark in MARKS:
        for _ in range(40):
            name = things[random.randint(len(things))]
            ground = grounds[random.randint(10)]
            scenes.append(Scene((Thing(name, None, mark),), ground, seed=seed))
            seed += 1
    return scenes


@torch.no_grad()
def read_true(judge: Judge, vae: TinyVAE | None, scenes: list[Scene]) -> Reading:
    """Return the judge's reading of scenes, which are sent through the VAE if there is one."""
    readings = []
    for start in range(0, len(scenes), 50):
        pictures = np.stack([draw(scene) for scene in scenes[start : start + 50]])
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        decoded: Tensor = x if vae is None else round_trip(vae, x)
        readings.append(judge.read(decoded.permute(0, 2, 3, 1)))
        if start % 500 == 0:
            logging.info("ceilings: %d of %d scenes read", start, len(scenes))
    return Reading(
        thing=[answer for reading in readings for answer in reading.thing],
        style=[answer for reading in readings for answer in reading.style],
        ground=[answer for reading in readings for answer in reading.ground],
        colour=[answer for reading in readings for answer in reading.colour],
        mark=[answer for reading in readings for answer in reading.mark],
    )


def measure(judge: Judge, vae: TinyVAE | None, path: Path) -> Ceilings:
    """Measure all ceilings, write them as JSON and return them."""
    scenes = _true_scenes()
    reading = read_true(judge, vae, scenes)
    flags: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for number, scene in enumerate(scenes):
        thing = scene.things[0]
        flags["thing"][thing.name][scene.style].append(reading.thing[number] == thing.name)
        flags["style"][scene.style][scene.ground].append(reading.style[number] == scene.style)
        right = reading.ground[number] == scene.ground
        flags["ground"][scene.ground][scene.style].append(right)
        mark = thing.mark or "no mark"
        flags["mark"][mark][scene.style].append(reading.mark[number] == mark)
        if scene.style not in LOOKS and scene.style not in ("ink", "glossy"):
            colour = thing.colour or "its own"
            flags["colour"][colour][scene.style].append(reading.colour[number] == colour)
    table = {
        head: {
            answer: {style: float(np.mean(values)) for style, values in styles.items()}
            for answer, styles in answers.items()
        }
        for head, answers in flags.items()
    }
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Ceilings(table)


def means(ceilings: Ceilings) -> dict[str, float]:
    """Return the mean ceilings by head, and those of things by style, for a table."""
    out = {}
    for head, answers in ceilings.table.items():
        out[head] = float(np.mean([v for styles in answers.values() for v in styles.values()]))
    for style in STYLES:
        out[f"thing in {style}"] = float(
            np.mean([styles[style] for styles in ceilings.table["thing"].values()])
        )
    return out
