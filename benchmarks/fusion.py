"""Gradient fusion on the toy base: ``python3 benchmarks/run.py fusion``; resumable.

Two, four and eight subjects learnt apart, held-out classes, marks and a style, concepts and
ordinary LoRAs mixed; fused, averaged and stacked, each judged on its own prompts, and the base's
own abilities. Beside it what fusion costs with two and with eight, and the closed form against the
authors' optimiser on the same activations. ``--part`` fills the cache for a part alone.
Writes ``benchmarks/results/fusion.md`` and ``fusion.json``.
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
PARTS = ("identity", "cost", "solvers", "wide")
NOISE = 260_000  # every subject is judged on noise of its own


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="fusion", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--per-prompt", type=int, default=10, help="pictures; there are 20 prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=81_920, help="of a concept, at real width")
    parser.add_argument("--part", action="append", choices=PARTS, help="write no report")
    parser.add_argument("--arm", action="append", help="of the part identity: these alone")
    parser.add_argument("--cost", type=int, help="measure a fusion of so many, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "fusion.md")
    options = parser.parse_args(arguments)
    import pair

    study = Study(pair.Study.open(0, options.threads), options)
    if options.cost is not None:
        from fusion_study.cost import measure

        print(json.dumps(measure(study.base, study.concepts(options.cost))))
        return 0
    found = {part: getattr(study, part)() for part in options.part or PARTS}
    if options.part is None:
        from fusion_study.report import write_report

        write_report(options.out, study.facts(), found)
    return 0


class Study:
    """Everything that is measured, each kept in the cache as soon as it is there."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from ed_lora_study.arms import BUDGET
        from environment import cache_folder
        from pair_study.kept import Kept

        self.base, self.judge, self.options = opened.base, opened.judge, options
        self.base_digest, self.budget = opened.base_digest, BUDGET
        rests = [self.base_digest, self.judge.hash, asdict(self.budget)]
        self.kept = Kept(cache_folder() / "fusion_study", rests)
        self._learnt: list[Any] = []

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
            "pictures": 20 * self.options.per_prompt,
        }

    def concepts(self, count: int) -> tuple:
        """The first so many subjects, learnt."""
        from fusion_study.arms import LEARNT, learn

        for one in LEARNT[len(self._learnt) : count]:
            self._learnt.append(learn(self.base, one))
        return tuple(self._learnt[:count])

    def identity(self) -> dict[str, Any]:
        """Flags by count, arm and subject: identity, colour and background right; and the base's."""
        from fusion_study.arms import ALONE, ARMS, LEARNT, added

        arms = self.options.arm or [ALONE, *ARMS]
        found: dict[str, Any] = {}
        if ALONE in arms:
            for index, one in enumerate(LEARNT[: max(self.options.counts)]):
                place = [ALONE, index, self.options.per_prompt]

                def alone(index: int = index, one: Any = one) -> list:
                    own = self.concepts(index + 1)[index : index + 1]
                    return self._judged(ALONE, added(self.base, own, 1.0), one, index)

                found.setdefault(ALONE, []).append(self.kept(place, alone))
        for count in self.options.counts:
            for arm in (arm for arm in arms if arm != ALONE):
                ready: list[Any] = []
                flags = []
                for index, one in enumerate([*LEARNT[:count], None]):
                    place = [arm, count, index if one else "base", self.options.per_prompt]

                    def judged(one: Any = one, index: int = index, arm: str = arm) -> list:
                        if not ready:  # noqa: B023 - called before the loop goes on
                            ready.append(ARMS[arm](self.base, self.concepts(count)))  # noqa: B023
                        return self._judged(f"{arm} of {count}", ready[0], one, index)  # noqa: B023

                    flags.append(self.kept(place, judged))
                found.setdefault(arm, {})[str(count)] = flags
        if self.options.arm is None:
            from fusion_study.arms import Ready

            plain = Ready(self.base.model, self.base.clip, ())
            place = ["base", self.options.per_prompt]
            found["base"] = self.kept(place, lambda: self._judged("base", plain, None, 0))
        return found

    def cost(self) -> dict[str, Any]:
        """Seconds and memory of fusions of two, four and eight, each in a process of its own."""
        from fusion_study.cost import measured

        threads = self.options.threads
        return {
            str(count): self.kept(["cost", count, threads], lambda c=count: measured(c, threads))
            for count in self.options.counts
        }

    def solvers(self) -> list[dict[str, Any]]:
        """Closed form and the authors' optimiser on every layer's own activations."""
        from fusion_study.solvers import whole_base

        count = self.options.counts[0]
        place = ["solvers", count, self.options.threads]
        return self.kept(place, lambda: whole_base(self.base, self.concepts(count)))

    def wide(self) -> list[dict[str, Any]]:
        """The same for one layer of each width and kind at real width, on power-law inputs."""
        from fusion_study.solvers import WIDE, wide_layer

        threads, rows = self.options.threads, self.options.rows
        return [
            self.kept(["wide", *layer, rows, threads], lambda w=layer: wide_layer(*w, rows))
            for layer in WIDE
        ]

    def _judged(self, arm: str, ready: Any, one: Any, index: int) -> list[list[bool]]:
        """Identity, colour and background of every picture; without a subject the base's own."""
        from fusion_study.arms import draw
        from toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing, caption

        flags: list[list[bool]] = []
        for number in range(len(COLOURS) * len(BACKGROUNDS)):
            colour, ground = list(COLOURS)[number % 5], BACKGROUNDS[number // 5]
            subject = None if one is None else one.subject
            kind = BASE_CLASSES[number % len(BASE_CLASSES)] if subject is None else subject.kind
            scene = Scene((Thing(kind, colour),), ground)
            text = caption(scene) if one is None else one.text(scene)
            many = self.options.per_prompt
            noise = NOISE + 1000 * index + number
            reading = self.judge.read(draw(self.base, ready, text, noise, many))
            for i in range(many):
                right = reading.object[i] == kind
                if one is not None and one.style is not None:
                    right = reading.style[i] == one.style
                elif subject is not None and subject.mark is not None:
                    right = right and reading.mark[i] == subject.mark
                coloured, grounded = reading.colour[i] == colour, reading.background[i] == ground
                flags.append([bool(right), bool(coloured), bool(grounded)])
        print(
            f"{arm}, {one.word if one else 'base'}: {np.mean(flags, axis=0).round(2)}", flush=True
        )
        return flags
