"""Evaluate the ordinary LoRA on the toy base: ``python3 benchmarks/run.py plain``; resumable.

A class that the base has never seen is learnt from eight captioned pictures with three seeds, and
judged on new colours and backgrounds. Class rate, step time and peak memory are compared with
core's Train LoRA at equal steps, each with the best of three learning rates. The base computes in
bf16. The results are written to ``benchmarks/results/plain.md`` and ``plain.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from environment import cache_folder
from safetensors.torch import load_file

from ..shared.cache import ResultCache
from ..shared.plain_lora import RANK, SCHEDULE, Lora, PlainTraining, pictures
from ..shared.toy_base import SAMPLING, Setup, load_setup
from ..toyworld.scenes import BOAT_SCENES
from ..toyworld.world import BASE_CLASSES, Scene, Thing
from .arms import LEARN, RATES, draw
from .cost import measure, measure_in_new_process
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]
COLOURS, BACKGROUNDS = ("blue", "purple"), ("snow", "brick")
SEARCH_PROMPTS = 90_000  # first seed of the prompts that choose the learning rates
NEW_PROMPTS = 1000  # difference of the prompt and noise seeds of two trainings
BATCH = 20


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="plain", description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=600, help="steps of a training, one picture each"
    )
    parser.add_argument("--pictures", type=int, default=100, help="pictures per training")
    parser.add_argument(
        "--search-pictures", type=int, default=40, help="pictures per learning rate"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings per arm")
    parser.add_argument("--cost-steps", type=int, default=40, help="steps of the measured training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost", choices=("pack", "core"), help="measure one arm and print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "plain.md")
    options = parser.parse_args(arguments)
    setup = load_setup(options.threads)
    if options.cost is not None:
        print(json.dumps(measure(setup.base, options.cost, options.steps)))
        return 0
    study = Study(setup, options)
    write_report(options.out, study.metadata(), study.result())
    return 0


class Study:
    """The trainings and pictures of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.judge = setup, setup.base, setup.judge
        self.options, self.rates = options, RATES
        self.schedules = {"pack": [SCHEDULE]}
        shown = hashlib.sha256(b"".join(p.numpy().tobytes() for p in pictures()[0])).hexdigest()
        basis = [setup.base_digest, setup.judge.hash, shown, options.steps, RANK]
        self.cache = ResultCache(cache_folder() / "plain_study", basis)

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            "steps": self.options.steps,
            "sampling": SAMPLING,
            "pictures": self.options.pictures,
            "seeds": self.options.seeds,
        }

    def result(self) -> dict:
        """Return the flags of base and arms, and the arms' learning rates and costs."""
        options = self.options
        seeds = range(options.seeds)
        own = [self._flags(None, 0.0, seed, options.pictures, NEW_PROMPTS * seed) for seed in seeds]
        found: dict[str, dict] = {"base": {"flags": own}}
        for arm in self.rates:
            rate = self._search(arm)
            flags = [
                self._flags(arm, rate, seed, options.pictures, NEW_PROMPTS * seed) for seed in seeds
            ]
            cost = self.cache.get(
                ["cost", arm, options.cost_steps, options.threads],
                lambda arm=arm: measure_in_new_process(arm, options.cost_steps, options.threads),
            )
            found[arm] = {"rate": rate, "flags": flags, "cost": cost}
        return found

    def _search(self, arm: str) -> float:
        """Return the learning rate that gets class, colour and background right most often."""
        count = self.options.search_pictures

        def right(rate: float) -> float:
            return np.all(self._flags(arm, rate, 0, count, SEARCH_PROMPTS), axis=1).mean()

        return max(self.rates[arm], key=right)

    def _flags(
        self, arm: str | None, rate: float, seed: int, count: int, first: int
    ) -> list[list[bool]]:
        """Return class, colour and background flags of every picture; without arm, the base's."""

        def draw_and_print() -> list[list[bool]]:
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

        schedule = self.schedules.get(arm, ())
        return self.cache.get(["flags", arm, rate, seed, count, first, *schedule], draw_and_print)

    def _prompts(self, arm: str | None, count: int, first: int) -> list:
        """Return scenes in colours and on backgrounds that no training picture has."""
        generator = np.random.RandomState(6000 + first % 10_007)
        kinds = (BOAT_SCENES[0].things[0].kind,) if arm else BASE_CLASSES
        return [
            Scene(
                (Thing(kinds[generator.randint(len(kinds))], COLOURS[number % 2]),),
                BACKGROUNDS[number // 2 % 2],
            )
            for number in range(count)
        ]

    def _lora(self, arm: str, rate: float, seed: int) -> Lora:
        """Return the trained LoRA, from the cache if it is stored there."""
        training = PlainTraining(self.options.steps, rate, seed)
        if arm == "pack":
            return LEARN[arm](self.base, training)  # stored in its run folder
        learn = LEARN[arm]
        return load_file(
            self.cache.tensor_file(["lora", arm, rate, seed], lambda: learn(self.base, training))
        )
