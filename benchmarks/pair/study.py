"""Evaluate Pair Customization on the toy base: ``python3 benchmarks/run.py pair``; resumable.

Two styles that the base has never seen are learnt from one and from four pairs with three seeds.
They are compared with a plain LoRA on the pictures after, with the same rank, layers and rows. Both
arms search the same number of learning rates, per style on one pair. The base computes in bf16,
which halves the time on processors that support it. ``--style`` computes one style only, so that
two processes can share the work. The results are written to ``benchmarks/results/pair.md`` and
``pair.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from environment import cache_folder
from pack.training.files.lora_file import read_lora

from ..shared.cache import ResultCache
from ..shared.toy_base import GUIDED_SAMPLING, Drawing, Setup, Training, load_setup
from ..toyworld.scenes import PAIR_SCENES
from ..toyworld.world import BACKGROUNDS, BENCHMARK_STYLES, random_scene, style_words
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]
PAIR_CLASSES = ("house", "fish", "heart", "cup")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SCALES = (2.0, 2.5, 3.0, 4.0, 5.0)
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.3)
SEARCH_STRENGTHS = {"guidance": (2.0, 3.0, 4.0), "lora": (0.6, 0.8, 1.0)}
SEARCH_PICTURES, BATCH = 40, 20
NEW_PROMPTS = 1000  # difference of the prompt and noise seeds of two trainings


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="pair", description=__doc__)
    parser.add_argument("--pictures", type=int, default=67, help="pictures per training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per cell")
    parser.add_argument("--style", help="compute this style only and write no report")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500, help="steps of a pair's training")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "pair.md")
    options = parser.parse_args(arguments)
    study = Study(load_setup(options.threads), options.steps)
    cells = {}
    for style in [options.style] if options.style else BENCHMARK_STYLES:
        for pairs in (1, 4):
            name = f"{style}, 1 pair" if pairs == 1 else f"{style}, {pairs} pairs"
            cells[name] = study.cell(style, pairs, options.seeds, options.pictures)
    if options.style is None:
        write_report(options.out, study.metadata(options), cells)
    return 0


class Study:
    """The trainings and pictures of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, steps: int) -> None:
        self.setup, self.base, self.judge, self.steps = setup, setup.base, setup.judge, steps
        self.folder = cache_folder() / "pair_study"
        basis = [setup.base_digest, setup.judge.hash, GUIDED_SAMPLING, steps]
        self.cache = ResultCache(self.folder, basis)
        # Trainings depend neither on the judge nor on the sampling.
        self.trainings = ResultCache(self.folder, [setup.base_digest])

    def metadata(self, options: argparse.Namespace) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            "steps": self.steps,
            "sampling": GUIDED_SAMPLING,
            "pictures": options.pictures,
            "seeds": options.seeds,
        }

    def cell(self, style: str, pairs: int, seeds: int, pictures: int) -> dict:
        """Return both arms' flags for a style and number of pairs, over seeds and strengths."""
        own = {PAIR_SCENES[0].background} if pairs == 1 else None
        result = {"backgrounds": "the pair's own" if own else "all"}
        for arm, strengths in (("guidance", SCALES), ("lora", STRENGTHS)):
            rate = self._search(arm, style)
            flags = [
                [
                    self._flags(
                        arm, style, pairs, rate, seed, strength, pictures, own, NEW_PROMPTS * seed
                    )
                    for strength in strengths
                ]
                for seed in range(seeds)
            ]
            result[arm] = {"rate": rate, "strengths": strengths, "flags": flags}
        scale = self._best_scale(np.array(result["guidance"]["flags"], dtype=bool))
        result["scale"] = SCALES[scale]
        if pairs == 1:
            result["everywhere"] = self._flags_by_background(
                style, result["guidance"]["rate"], SCALES[scale], seeds, pictures
            )
        return result

    def _flags_by_background(
        self, style: str, rate: float, scale: float, seeds: int, pictures: int
    ) -> dict[str, list]:
        """Return the flags of a training on one pair, by background."""
        return {
            ground: [
                self._flags(
                    "guidance",
                    style,
                    1,
                    rate,
                    seed,
                    scale,
                    pictures // 4,
                    {ground},
                    NEW_PROMPTS * seed,
                )
                for seed in range(seeds)
            ]
            for ground in BACKGROUNDS
        }

    def _search(self, arm: str, style: str) -> float:
        """Return the learning rate whose best strength gets style and object right most often."""
        own = {PAIR_SCENES[0].background}

        def best(rate: float) -> float:
            return max(
                np.all(
                    self._flags(arm, style, 1, rate, 0, strength, SEARCH_PICTURES, own, 900),
                    axis=1,
                ).mean()
                for strength in SEARCH_STRENGTHS[arm]
            )

        return max(LEARNING_RATES, key=best)

    @staticmethod
    def _best_scale(flags: np.ndarray) -> int:
        """Return the index of the scale that gets style and object right most often."""
        return int(flags.all(axis=3).mean(axis=(0, 2)).argmax())

    def _flags(
        self,
        arm: str,
        style: str,
        pairs: int,
        rate: float,
        seed: int,
        strength: float,
        pictures: int,
        grounds: set[str] | None,
        first: int = 0,
    ) -> list[list[bool]]:
        """Return two flags per picture: style right and object right."""

        def draw_and_print() -> list[list[bool]]:
            flags = self._draw(arm, style, pairs, rate, seed, strength, pictures, grounds, first)
            line = f"{style}, {pairs}, {arm} {strength:g} at {rate:g}, seed {seed}"
            print(f"{line}: {np.mean(flags, axis=0)}", flush=True)
            return flags

        key = [arm, style, pairs, rate, seed, strength, pictures, sorted(grounds or ()), first]
        return self.cache.get(key, draw_and_print, "flags")

    def _draw(self, arm, style, pairs, rate, seed, strength, pictures, grounds, first):
        lora = self._lora(arm, style, pairs, rate, seed)
        drawing = Drawing(arm, style_words(style), lora, strength)
        scenes = self._prompts(pictures, grounds, first)
        flags = []
        for start in range(0, pictures, BATCH):
            part = scenes[start : start + BATCH]
            reading = self.judge.read(self.base.draw(part, first + start, drawing))
            flags += [
                [reading.style[i] == style, reading.object[i] == scene.things[0].kind]
                for i, scene in enumerate(part)
            ]
        return flags

    def _prompts(self, count: int, grounds: set[str] | None, seed: int) -> list:
        """Return scenes of objects that no pair shows, on the given grounds."""
        generator = np.random.RandomState(4000 + seed)
        scenes = []
        while len(scenes) < count:
            scene = random_scene(generator, held_out=None, styles=("plain",))
            ground_fits = grounds is None or scene.background in grounds
            if ground_fits and scene.things[0].kind not in PAIR_CLASSES:
                scenes.append(scene)
        return scenes

    def _lora(self, arm: str, style: str, pairs: int, rate: float, seed: int):
        """Return the trained LoRA, from the cache if it is stored there."""
        training = Training(self.steps, rate, seed)
        scenes = PAIR_SCENES[:pairs]
        if arm == "guidance":
            return self.base.learn_pair(scenes, style, training)  # stored in its run folder
        path = self.trainings.tensor_file(
            [style, pairs, self.steps, rate, seed],
            lambda: self.base.learn_single(scenes, style, training),
            "single",
        )
        return read_lora(path)
