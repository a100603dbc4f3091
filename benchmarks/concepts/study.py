"""Concepts on the toy base: ``python3 benchmarks/run.py concepts``; resumable.

Classes that the base has never seen, and classes of its own with a mark that it has never seen,
six pictures each; judged in all colours on all grounds, of which the pictures show six of twenty
pairs. Beside an ordinary LoRA of as many pictures, words alone, and the words of a concept whose
LoRA is at 0. Denoiser and text encoder compute in bf16. ``--arm`` fills the cache for one arm
alone. Writes ``benchmarks/results/concepts.md`` and ``concepts.json``.
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
NEW_PROMPTS = 1000  # each training is judged on noise of its own


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="concepts", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="trainings per subject and arm")
    parser.add_argument("--words-seeds", type=int, default=1, help="likewise, of words alone")
    parser.add_argument("--per-prompt", type=int, default=3, help="pictures; there are 20 prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arm", action="append", help="fill the cache for it, write no report")
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
        """Flags by arm, ``(training, picture, flag)``; a training is a subject with a seed."""
        found: dict[str, list] = {arm: [] for arm in chosen or ARMS}
        for seed in range(self.options.seeds):
            for subject in SUBJECTS:
                cell = Cell(self.base, self.budget, subject, seed)
                for arm in found:
                    if arm == WORDS_ALONE and seed >= self.options.words_seeds:
                        continue
                    place = [arm, subject.kind, subject.mark, seed, self.options.per_prompt]
                    found[arm].append(
                        self.cache.get(place, lambda a=arm, c=cell: self._judged(a, ARMS[a](c), c))
                    )
        return found

    def own_flags(self) -> list[list[list[bool]]]:
        """Flags of the base alone on classes of its own, in the same colours on the same grounds."""
        found = []
        for number, kind in enumerate(BASE_CLASSES):
            cell = Cell(self.base, self.budget, Subject(kind), number)
            how = (self.base.model, kind, self.base.prompt)
            found.append(
                self.cache.get(["base", kind], lambda h=how, c=cell: self._judged("base", h, c))
            )
        return found

    def _judged(self, arm: str, how: Any, cell: Any) -> list[list[bool]]:
        """Identity, colour and background right of every picture."""
        subject, many = cell.subject, self.options.per_prompt
        flags: list[list[bool]] = []
        for number in range(len(COLOURS) * len(BACKGROUNDS)):
            colour, ground = list(COLOURS)[number % 5], BACKGROUNDS[number // 5]
            scene = Scene((Thing(subject.kind, colour),), ground)
            noise = 120_000 + NEW_PROMPTS * cell.seed + number
            reading = self.judge.read(draw(self.base, how, subject, scene, noise, many))
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
