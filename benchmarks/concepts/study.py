"""Evaluate concepts on the toy base: ``python3 benchmarks/run.py concepts``; resumable.

The subjects are classes that the base has never seen, and known classes with a mark that it has
never seen, with six pictures each. They are judged in all colours on all grounds; the pictures show
six of these twenty pairs. ED-LoRA is compared with an ordinary LoRA of as many pictures, with
learnt words only, and with the words of a concept whose LoRA is at 0. Denoiser and text encoder
compute in bf16. ``--arm`` computes one arm only. The results are written to
``benchmarks/results/concepts.md`` and ``concepts.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import cache_folder

from ..shared.cache import ResultCache
from ..shared.subjects import BUDGET, Subject
from ..shared.toy_base import SAMPLING, Setup, load_setup
from ..toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing
from .arms import ARMS, SUBJECTS, WORDS_ALONE, Cell, draw
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]
NEW_PROMPTS = 1000  # difference of the noise seeds of two trainings


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="concepts", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="trainings per subject and arm")
    parser.add_argument(
        "--words-seeds", type=int, default=1, help="trainings per subject of words alone"
    )
    parser.add_argument(
        "--per-prompt", type=int, default=3, help="pictures per prompt; there are 20 prompts"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", action="append", help="compute this arm only and write no report")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "concepts.md")
    options = parser.parse_args(arguments)
    study = Study(load_setup(options.threads), options)
    found = study.flags(options.arm)
    if options.arm is None:
        write_report(options.out, study.metadata(), found, study.own_flags())
    return 0


class Study:
    """The trainings and pictures of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.judge = setup, setup.base, setup.judge
        self.options, self.budget = options, BUDGET
        basis = [setup.base_digest, setup.judge.hash, asdict(BUDGET)]
        self.cache = ResultCache(cache_folder() / "ed_lora_study", basis)

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            **asdict(self.budget),
            "sampling": SAMPLING,
            "pictures": 20 * self.options.per_prompt,
            "seeds": self.options.seeds,
            "seeds of words alone": self.options.words_seeds,
        }

    def flags(self, chosen: Sequence[str] | None) -> dict[str, list]:
        """Return flags by arm, ``(training, picture, flag)``, one training per subject and seed."""
        found: dict[str, list] = {arm: [] for arm in chosen or ARMS}
        for seed in range(self.options.seeds):
            for subject in SUBJECTS:
                cell = Cell(self.base, self.budget, subject, seed)
                for arm in found:
                    if arm == WORDS_ALONE and seed >= self.options.words_seeds:
                        continue
                    key = [arm, subject.kind, subject.mark, seed, self.options.per_prompt]
                    found[arm].append(
                        self.cache.get(
                            key, lambda a=arm, c=cell: self._judge_pictures(a, ARMS[a](c), c)
                        )
                    )
        return found

    def own_flags(self) -> list[list[list[bool]]]:
        """Return the flags of the base on the classes that it knows, with the same prompts."""
        found = []
        for number, kind in enumerate(BASE_CLASSES):
            cell = Cell(self.base, self.budget, Subject(kind), number)
            prepared = (self.base.model, kind, self.base.prompt)
            found.append(
                self.cache.get(
                    ["base", kind], lambda h=prepared, c=cell: self._judge_pictures("base", h, c)
                )
            )
        return found

    def _judge_pictures(self, arm: str, prepared: Any, cell: Any) -> list[list[bool]]:
        """Return flags for identity, colour and background of every picture."""
        subject, many = cell.subject, self.options.per_prompt
        flags: list[list[bool]] = []
        for number in range(len(COLOURS) * len(BACKGROUNDS)):
            colour, ground = list(COLOURS)[number % 5], BACKGROUNDS[number // 5]
            scene = Scene((Thing(subject.kind, colour),), ground)
            noise = 120_000 + NEW_PROMPTS * cell.seed + number
            reading = self.judge.read(draw(self.base, prepared, subject, scene, noise, many))
            flags += [
                [
                    reading.object[i] == subject.kind
                    and (subject.mark is None or reading.mark[i] == subject.mark),
                    reading.colour[i] == colour,
                    reading.background[i] == ground,
                ]
                for i in range(many)
            ]
        line = f"{arm}, {subject.kind} {subject.mark or ''}, seed {cell.seed}"
        print(f"{line}: {np.mean(flags, axis=0).round(2)}", flush=True)
        return [[bool(flag) for flag in row] for row in flags]
