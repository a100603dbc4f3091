"""The ordinary LoRA on the toy base: ``python3 benchmarks/run.py plain``; resumable.

A class that the base has never seen, from eight captioned pictures, three seeds, judged on new
colours and backgrounds; beside core's Train LoRA at equal steps, each with the best of three
learning rates: class rate, step time, peak memory. The base computes in bf16.
Writes ``benchmarks/results/plain.md`` and ``plain.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).resolve().parent
COLOURS, BACKGROUNDS = ("blue", "purple"), ("snow", "brick")
SEARCH_PROMPTS, NEW_PROMPTS = 90_000, 1000  # each training is judged on noise of its own
BATCH = 20


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="plain", description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of a training, one picture each")
    parser.add_argument("--pictures", type=int, default=100, help="per training")
    parser.add_argument("--search-pictures", type=int, default=40, help="per learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per arm")
    parser.add_argument("--cost-steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost", choices=("pack", "core"), help="measure one arm, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "plain.md")
    options = parser.parse_args(arguments)
    import pair

    opened = pair.Study.open(options.steps, options.threads)
    if options.cost is not None:
        from plain_study.cost import measure

        print(json.dumps(measure(opened.base, options.cost, options.steps)))
        return 0
    from plain_study.report import write_report

    study = Study(opened, options)
    write_report(options.out, study.facts(), study.result())
    return 0


class Study:
    """The trainings and pictures of the study, each kept in the cache as soon as it is made."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from environment import cache_folder
        from pair_study.kept import Kept
        from plain_study.arms import RANK, RATES, SCHEDULE, pictures

        self.base, self.judge, self.options = opened.base, opened.judge, options
        self.base_digest, self.rates = opened.base_digest, RATES
        self.courses = {"pack": [SCHEDULE]}
        shown = hashlib.sha256(b"".join(p.numpy().tobytes() for p in pictures()[0])).hexdigest()
        rests = [self.base_digest, self.judge.hash, shown, options.steps, RANK]
        self.kept = Kept(cache_folder() / "plain_study", rests)

    def facts(self) -> dict:
        """What the result rests on."""
        from pair import SAMPLING
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "judge": self.judge.hash,
            "base": self.base_digest,
            "steps": self.options.steps,
            "sampling": SAMPLING.split(", window")[0],
            "pictures": self.options.pictures,
            "seeds": self.options.seeds,
        }

    def result(self) -> dict:
        """Flags of the base and of both arms, with the arms' learning rates and costs."""
        from plain_study.cost import measured

        options = self.options
        seeds = range(options.seeds)
        own = [self._flags(None, 0.0, seed, options.pictures, NEW_PROMPTS * seed) for seed in seeds]
        found: dict[str, dict] = {"base": {"flags": own}}
        for arm in self.rates:
            rate = self._search(arm)
            flags = [
                self._flags(arm, rate, seed, options.pictures, NEW_PROMPTS * seed) for seed in seeds
            ]
            cost = self.kept(
                ["cost", arm, options.cost_steps, options.threads],
                lambda arm=arm: measured(arm, options.cost_steps, options.threads),
            )
            found[arm] = {"rate": rate, "flags": flags, "cost": cost}
        return found

    def _search(self, arm: str) -> float:
        """The learning rate that gets class, colour and background right most often."""
        count = self.options.search_pictures

        def right(rate: float) -> float:
            return np.all(self._flags(arm, rate, 0, count, SEARCH_PROMPTS), axis=1).mean()

        return max(self.rates[arm], key=right)

    def _flags(
        self, arm: str | None, rate: float, seed: int, count: int, first: int
    ) -> list[list[bool]]:
        """Class, colour and background right, for every picture; without an arm of the base."""

        def drawn() -> list[list[bool]]:
            from plain_study.arms import draw

            lora = None if arm is None else self._lora(arm, rate, seed)
            scenes = self._prompts(arm, count, first)
            flags = []
            for start in range(0, count, BATCH):
                part = scenes[start : start + BATCH]
                pictures = draw(self.base, arm or "", lora, part, first + start)
                reading = self.judge.read(pictures)
                flags += [
                    [
                        reading.object[i] == scene.things[0].kind,
                        reading.colour[i] == scene.things[0].colour,
                        reading.background[i] == scene.background,
                    ]
                    for i, scene in enumerate(part)
                ]
            print(f"{arm or 'base'} at {rate:g}, seed {seed}: {np.mean(flags, axis=0)}", flush=True)
            return flags

        course = self.courses.get(arm, ())
        return self.kept(["flags", arm, rate, seed, count, first, *course], drawn)

    def _prompts(self, arm: str | None, count: int, first: int) -> list:
        """Scenes in colours and on backgrounds that no training picture has."""
        from toyworld.examples import BOAT_SCENES
        from toyworld.world import BASE_CLASSES, Scene, Thing

        generator = np.random.RandomState(6000 + first % 10_007)
        kinds = (BOAT_SCENES[0].things[0].kind,) if arm else BASE_CLASSES
        return [
            Scene(
                (Thing(kinds[generator.randint(len(kinds))], COLOURS[number % 2]),),
                BACKGROUNDS[number // 2 % 2],
            )
            for number in range(count)
        ]

    def _lora(self, arm: str, rate: float, seed: int):
        """The trained LoRA, from the cache where it was trained before."""
        from plain_study.arms import LEARN, PlainTraining
        from safetensors.torch import load_file, save_file

        how = PlainTraining(self.options.steps, rate, seed)
        if arm == "pack":
            return LEARN[arm](self.base, how)  # kept by the pack's own run folder
        path = self.kept.path(["lora", arm, rate, seed]).with_suffix(".safetensors")
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file(dict(LEARN[arm](self.base, how)), temporary)
            temporary.replace(path)
        return load_file(path)
