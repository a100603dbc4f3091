"""Break-for-Make on the toy base: ``python3 benchmarks/run.py b4m``; resumable.

Contents and styles that the base has never seen, learnt apart and made one; judged on pictures of
the content in the style, which no training picture shows. Every arm that has a stage gives it the
same steps and rate, and ordinary LoRAs see as many pictures as all stages together. The base
computes in bf16. ``--arm`` fills the cache for one arm alone, so that processes can share the work.
Writes ``benchmarks/results/b4m.md`` and ``b4m.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).resolve().parent
PAIRS = (("boat", "mosaic"), ("crown", "blueprint"))
"""Held-out content and held-out style."""
NEW_PROMPTS = 1000  # each training is judged on noise of its own
BATCH = 20
FLAGS = ("content", "style", "colour", "background")


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="b4m", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings per pair and arm")
    parser.add_argument("--pictures", type=int, default=67, help="per training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", action="append", help="fill the cache for it, write no report")
    parser.add_argument("--sdxl", action="store_true", help="measure SDXL's steps, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "b4m.md")
    options = parser.parse_args(arguments)
    if options.sdxl:
        from b4m_study.sdxl import measure

        print(json.dumps(measure(options.threads)))
        return 0
    import pair

    opened = pair.Study.open(0, options.threads)
    study = Study(opened, options)
    found = study.flags(options.arm)
    if options.arm is None:
        from b4m_study.report import write_report
        from b4m_study.sdxl import measured

        sdxl = study.kept(["sdxl"], lambda: measured(options.threads))
        write_report(options.out, study.facts(), found, sdxl)
    return 0


class Study:
    """The trainings and pictures of the study, each kept in the cache as soon as it is made."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from b4m_study.arms import BUDGET
        from environment import cache_folder
        from pair_study.kept import Kept

        self.base, self.judge, self.options = opened.base, opened.judge, options
        self.base_digest, self.budget = opened.base_digest, BUDGET
        rests = [self.base_digest, self.judge.hash, asdict(self.budget)]
        self.kept = Kept(cache_folder() / "b4m_study", rests)

    def facts(self) -> dict:
        """What the result rests on."""
        from pair import SAMPLING
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "judge": self.judge.hash,
            "base": self.base_digest,
            **asdict(self.budget),
            "sampling": SAMPLING.split(", window")[0],
            "pictures": self.options.pictures,
            "seeds": self.options.seeds,
        }

    def flags(self, chosen: Sequence[str] | None) -> dict[str, list[list[list[bool]]]]:
        """Flags by arm, ``(training, picture, flag)``; a training is a pair with a seed."""
        from b4m_study.arms import ARMS, Cell

        found: dict[str, list] = {arm: [] for arm in chosen or ARMS}
        for seed in range(self.options.seeds):
            for kind, style in PAIRS:
                cell = Cell(self.base, self.budget, kind, style, seed)
                for arm in found:
                    place = [arm, kind, style, seed, self.options.pictures]
                    found[arm].append(self.kept(place, lambda a=arm, c=cell: self._judged(a, c)))
        return found

    def _judged(self, arm: str, cell: Any) -> list[list[bool]]:
        """Draw the content in the style, in every colour on every ground, and read the pictures."""
        from b4m_study.arms import ARMS, draw
        from toyworld.world import BACKGROUNDS, COLOURS, Scene, Thing

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
