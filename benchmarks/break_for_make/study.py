"""Evaluate Break-for-Make on the toy base: ``python3 benchmarks/run.py break_for_make``; resumable.

Contents and styles that the base has never seen are trained separately and combined in one LoRA.
They are judged on pictures of the content in the style, which no training picture shows. Every arm
that has a stage gives it the same steps and rate, and ordinary LoRAs see as many pictures as all
stages together. The base computes in bf16. ``--arm`` computes one arm only, so that processes can
share the work. The results are written to ``benchmarks/results/break_for_make.md`` and
``break_for_make.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import cache_folder

from ..shared.cache import ResultCache
from ..shared.toy_base import SAMPLING, Setup, load_setup
from ..toyworld.world import BACKGROUNDS, COLOURS, Scene, Thing
from .arms import ARMS, BUDGET, Cell, draw
from .report import write_report
from .sdxl import measure, measure_in_new_process

BENCHMARKS = Path(__file__).resolve().parents[1]
PAIRS = (("boat", "mosaic"), ("crown", "blueprint"))  # held-out contents and held-out styles
NEW_PROMPTS = 1000  # difference of the noise seeds of two trainings
BATCH = 20
FLAGS = ("content", "style", "colour", "background")


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="break_for_make", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings per pair and arm")
    parser.add_argument("--pictures", type=int, default=67, help="pictures per training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", action="append", help="compute this arm only and write no report")
    parser.add_argument("--sdxl", action="store_true", help="measure SDXL's steps and print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "break_for_make.md")
    options = parser.parse_args(arguments)
    if options.sdxl:
        print(json.dumps(measure(options.threads)))
        return 0
    study = Study(load_setup(options.threads), options)
    found = study.flags(options.arm)
    if options.arm is None:
        sdxl = study.cache.get(["sdxl"], lambda: measure_in_new_process(options.threads))
        write_report(options.out, study.metadata(), found, sdxl)
    return 0


class Study:
    """The trainings and pictures of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.judge = setup, setup.base, setup.judge
        self.options, self.budget = options, BUDGET
        basis = [setup.base_digest, setup.judge.hash, asdict(BUDGET)]
        self.cache = ResultCache(cache_folder() / "b4m_study", basis)

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            **asdict(self.budget),
            "sampling": SAMPLING,
            "pictures": self.options.pictures,
            "seeds": self.options.seeds,
        }

    def flags(self, chosen: Sequence[str] | None) -> dict[str, list[list[list[bool]]]]:
        """Return flags by arm, ``(training, picture, flag)``, a training for each pair and seed."""
        found: dict[str, list] = {arm: [] for arm in chosen or ARMS}
        for seed in range(self.options.seeds):
            for kind, style in PAIRS:
                cell = Cell(self.base, self.budget, kind, style, seed)
                for arm in found:
                    key = [arm, kind, style, seed, self.options.pictures]
                    found[arm].append(
                        self.cache.get(key, lambda a=arm, c=cell: self._judge_pictures(a, c))
                    )
        return found

    def _judge_pictures(self, arm: str, cell: Any) -> list[list[bool]]:
        """Return the flags of pictures of the content in the style, in all colours and grounds."""
        colours = list(COLOURS)
        scenes = [
            Scene(
                (Thing(cell.kind, colours[number % 5]),),
                BACKGROUNDS[number // 5 % 4],
                cell.style,
            )
            for number in range(self.options.pictures)
        ]
        lora = ARMS[arm](cell)
        flags = []
        for start in range(0, len(scenes), BATCH):
            part = scenes[start : start + BATCH]
            noise = 80_000 + NEW_PROMPTS * cell.seed + start
            reading = self.judge.read(draw(self.base, lora, part, noise))
            flags += [
                [
                    reading.object[i] == scene.things[0].kind,
                    reading.style[i] == scene.style,
                    reading.colour[i] == scene.things[0].colour,
                    reading.background[i] == scene.background,
                ]
                for i, scene in enumerate(part)
            ]
        line = f"{arm}, {cell.kind} {cell.style}, seed {cell.seed}"
        both = np.array(flags)[:, :2].all(axis=1).mean()
        print(f"{line}: {np.mean(flags, axis=0).round(2)}, both {both:.2f}", flush=True)
        return [[bool(flag) for flag in row] for row in flags]
