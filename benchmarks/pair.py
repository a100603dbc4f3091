"""Pair Customization on the toy base: ``python3 benchmarks/run.py pair``; resumable.

Two styles that the base has never seen, one and four pairs, three seeds; beside a plain LoRA on
the pictures after, with the same rank, layers and rows and an equal search of learning rates, done
per style on one pair. The base computes in bf16, which halves the time on processors that have it.
``--style`` fills the cache for one style alone, so that two processes can share the work.
Writes ``benchmarks/results/pair.md`` and ``pair.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).resolve().parent
PAIR_CLASSES = ("house", "fish", "heart", "cup")
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SCALES = (2.0, 2.5, 3.0, 4.0, 5.0)
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.3)
SEARCH_STRENGTHS = {"guidance": (2.0, 3.0, 4.0), "lora": (0.6, 0.8, 1.0)}
SEARCH_PICTURES, BATCH = 40, 20
SAMPLING = "dpmpp_2m karras, 14 steps, CFG 4, window from 0.2"
NEW_PROMPTS = 1000  # each training is judged on prompts and noise of its own


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="pair", description=__doc__)
    parser.add_argument("--pictures", type=int, default=67, help="per training; three make a cell")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per cell")
    parser.add_argument("--style", help="fill the cache for this style alone, write no report")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500, help="of a pair's training")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "pair.md")
    options = parser.parse_args(arguments)
    study = Study.open(options.steps, options.threads)
    cells = {}
    for style in [options.style] if options.style else study.styles:
        for pairs in (1, 4):
            cells[f"{style}, {pairs} pair{'s'[: pairs - 1]}"] = study.cell(
                style, pairs, options.seeds, options.pictures
            )
    if options.style is None:
        from pair_study.report import write_report

        write_report(options.out, study.facts(options), cells)
    return 0


class Study:
    """The trainings and pictures of the study, each kept in the cache as soon as it is made."""

    def __init__(self, base, judge, cache: Path, steps: int, checkpoint: Path) -> None:
        from toyworld.examples import PAIR_SCENES
        from toyworld.world import BENCHMARK_STYLES

        self.base, self.judge, self.steps = base, judge, steps
        self.cache, self.styles, self.scenes = cache, BENCHMARK_STYLES, PAIR_SCENES
        self.base_digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]

    @classmethod
    def open(cls, steps: int, threads: int) -> Study:
        """Load base and judge; the judge is trained on the first call."""
        import torch
        from comfy_in_process import prepare_comfy
        from environment import cache_folder
        from toy_base import CHECKPOINT, place, toy_checkpoint

        torch.set_num_threads(threads)
        folder = cache_folder() / "pair_study"
        prepare_comfy(folder)
        place(folder)
        sys.path.append(str(BENCHMARKS))
        from pair_study.base import ToyBase
        from toyworld.judge import Judge
        from toyworld.vae import TinyVAE

        judge = Judge(TinyVAE.from_checkpoint(toy_checkpoint()))
        return cls(ToyBase.load(CHECKPOINT), judge, folder, steps, toy_checkpoint())

    def facts(self, options: argparse.Namespace) -> dict:
        """What the result rests on."""
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "judge": self.judge.hash,
            "base": self.base_digest,
            "steps": self.steps,
            "sampling": SAMPLING,
            "pictures": options.pictures,
            "seeds": options.seeds,
        }

    def cell(self, style: str, pairs: int, seeds: int, pictures: int) -> dict:
        """Both arms of one style and number of pairs, over seeds and strengths."""
        own = {self.scenes[0].background} if pairs == 1 else None
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
        scale = self._common(np.array(result["guidance"]["flags"], dtype=bool))
        result["scale"] = SCALES[scale]
        if pairs == 1:
            result["everywhere"] = self._everywhere(
                style, result["guidance"]["rate"], SCALES[scale], seeds, pictures
            )
        return result

    def _everywhere(
        self, style: str, rate: float, scale: float, seeds: int, pictures: int
    ) -> dict[str, list]:
        """One pair's flags on every background."""
        from toyworld.world import BACKGROUNDS

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
        """The learning rate whose best strength gets style and object right most often."""
        own = {self.scenes[0].background}

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
    def _common(flags: np.ndarray) -> int:
        """The scale that gets style and object right most often over all trainings."""
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
        """Style right and object right, a pair of flags per picture."""
        place = [arm, style, pairs, rate, seed, strength, pictures, sorted(grounds or ()), first]
        name = json.dumps([self.base_digest, self.judge.hash, SAMPLING, self.steps, *place])
        path = self.cache / f"flags-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            flags = self._draw(arm, style, pairs, rate, seed, strength, pictures, grounds, first)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(flags), encoding="utf-8")
            temporary.replace(path)
            line = f"{style}, {pairs}, {arm} {strength:g} at {rate:g}, seed {seed}"
            print(f"{line}: {np.mean(flags, axis=0)}", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def _draw(self, arm, style, pairs, rate, seed, strength, pictures, grounds, first):
        from pair_study.base import Drawing
        from toyworld.world import style_words

        lora = self._lora(arm, style, pairs, rate, seed)
        how = Drawing(arm, style_words(style), lora, strength)
        scenes = self._prompts(pictures, grounds, first)
        flags = []
        for start in range(0, pictures, BATCH):
            part = scenes[start : start + BATCH]
            reading = self.judge.read(self.base.draw(part, first + start, how))
            flags += [
                [reading.style[i] == style, reading.object[i] == scene.things[0].kind]
                for i, scene in enumerate(part)
            ]
        return flags

    def _prompts(self, count: int, grounds: set[str] | None, seed: int) -> list:
        """Scenes of objects that no pair shows, on the grounds asked for."""
        from toyworld.world import random_scene

        generator = np.random.RandomState(4000 + seed)
        scenes = []
        while len(scenes) < count:
            scene = random_scene(generator, held_out=None, styles=("plain",))
            ground_fits = grounds is None or scene.background in grounds
            if ground_fits and scene.things[0].kind not in PAIR_CLASSES:
                scenes.append(scene)
        return scenes

    def _lora(self, arm: str, style: str, pairs: int, rate: float, seed: int):
        """The trained LoRA, from the cache where it was trained before."""
        from pack.training.files.lora_file import read_lora
        from pair_study.base import Training
        from safetensors.torch import save_file

        how = Training(self.steps, rate, seed)
        scenes = self.scenes[:pairs]
        if arm == "guidance":
            return self.base.learn_pair(scenes, style, how)  # kept by the pack's own run folder
        name = json.dumps([self.base_digest, style, pairs, self.steps, rate, seed])
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        path = self.cache / f"single-{digest}.safetensors"
        if not path.exists():
            temporary = path.with_suffix(".part")
            save_file(self.base.learn_single(scenes, style, how), temporary)
            temporary.replace(path)
        return read_lora(path)
