"""Gradient fusion on the toy base: ``python3 benchmarks/run.py fusion``; resumable.

Two, four and eight subjects learnt apart, held-out classes, marks and a style, concepts and
ordinary LoRAs mixed; fused, averaged and stacked, each judged on its own prompts, and the base's
own abilities. Beside it what fusion costs with two and with eight, the closed form against the
authors' optimiser on the same activations, and a whole fusion at real widths. ``--part`` and, for
the part identity, ``--arm`` fill the cache for some of it alone, so that processes can share the
work; let ``--part learning`` end first. Writes ``benchmarks/results/fusion.md`` and ``fusion.json``.
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
PARTS = ("learning", "identity", "cost", "solvers", "wide", "real_width")
NOISE = 260_000  # every subject is judged on noise of its own
BASE_NOISE = 100  # in place of a subject's number
PROMPTS = 20


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    options = _options(arguments)
    if options.real is not None:
        from fusion_study.real_width import measure

        print(
            json.dumps(
                measure(options.real, options.real_steps, options.real_side, options.threads)
            )
        )
        return 0
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


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fusion", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--pictures",
        type=int,
        default=200,
        help="of each subject, alone and in the default fusion, and of the base; of the other arms "
        "about as many of all subjects together",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16_384, help="of a concept, at real width")
    parser.add_argument("--real-steps", type=int, default=2, help="of drawing at real width")
    parser.add_argument("--real-side", type=int, default=256, help="of these pictures, in pixels")
    parser.add_argument("--part", action="append", choices=PARTS, help="write no report")
    parser.add_argument("--arm", action="append", help="of the part identity: these alone")
    parser.add_argument("--cost", type=int, help="measure a fusion of so many, print JSON")
    parser.add_argument("--real", help="the same at real width, or of its sites, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "fusion.md")
    options = parser.parse_args(arguments)
    if options.arm is not None and options.part != ["identity"]:
        parser.error("--arm needs --part identity and no other part")
    if options.pictures % PROMPTS:
        parser.error(f"--pictures must be a multiple of {PROMPTS}, got {options.pictures}")
    options.counts.sort()
    return options


class Study:
    """Everything that is measured, each kept in the cache as soon as it is there."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from environment import cache_folder
        from fusion_study.arms import BUDGET, DRAWING_STEPS, LAYERS, LEARNT, SIDE, VERSION
        from pack.lora_ops import STAGE_DAMPING
        from pair import SAMPLING
        from pair_study.kept import Kept

        self.base, self.judge, self.options = opened.base, opened.judge, options
        self.base_digest, self.budget = opened.base_digest, BUDGET
        rests = [self.base_digest, self.judge.hash, asdict(self.budget), SAMPLING, repr(LEARNT)]
        rests += [STAGE_DAMPING, DRAWING_STEPS, SIDE, VERSION, LAYERS]
        self.kept = Kept(cache_folder() / "fusion_study", rests)
        # Random weights and factors: nothing of the toy base is in them.
        self.kept_wide = Kept(self.kept.folder, [STAGE_DAMPING, VERSION])
        self._learnt: list[Any] = []

    def facts(self) -> dict:
        """What the result rests on."""
        from fusion_study.arms import DRAWING_STEPS, LAYERS, VERSION
        from pack.lora_ops import STAGE_DAMPING
        from pair import SAMPLING
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "judge": self.judge.hash,
            "base": self.base_digest,
            **asdict(self.budget),
            "layers": LAYERS,
            "sampling": SAMPLING.split(", window")[0],
            "pictures": self.options.pictures,
            "drawing steps of fusion": DRAWING_STEPS,
            "damping": STAGE_DAMPING,
            "version": VERSION,
        }

    def concepts(self, count: int) -> tuple:
        """The first so many subjects, learnt."""
        from fusion_study.arms import LEARNT, learn

        for one in LEARNT[len(self._learnt) : count]:
            self._learnt.append(learn(self.base, one))
        return tuple(self._learnt[:count])

    def learning(self) -> list[str]:
        """The subjects' words, all of them learnt."""
        return [one.name for one in self.concepts(self.options.counts[-1])]

    def identity(self) -> dict[str, Any]:
        """Flags by count, arm and subject: identity, colour and background right; and the base's."""
        from fusion_study.arms import ALONE, ARMS, BASE, LEARNT, Ready, added

        known = [ALONE, BASE, *ARMS]
        arms = self.options.arm or known
        unknown = [arm for arm in arms if arm not in known]
        if unknown:
            raise RuntimeError(f"--arm must be one of {', '.join(known)}, got {unknown[0]}")
        whole = self.options.pictures // PROMPTS
        found: dict[str, Any] = {}
        if BASE in arms:
            plain = Ready(self.base.model, self.base.clip, ())
            found[BASE] = self.kept(
                [BASE, whole], lambda: self._judged(BASE, plain, None, BASE_NOISE, whole)
            )
        if ALONE in arms:
            for index, one in enumerate(LEARNT[: self.options.counts[-1]]):

                def alone(index: int = index, one: Any = one) -> list:
                    own = self.concepts(index + 1)[index:]
                    return self._judged(ALONE, added(self.base, own, 1.0), one, index, whole)

                found.setdefault(ALONE, []).append(self.kept([ALONE, index, whole], alone))
        for arm in (arm for arm in arms if arm in ARMS):
            found[arm] = {str(count): self._together(arm, count) for count in self.options.counts}
        return found

    def _together(self, arm: str, count: int) -> list[list[list[bool]]]:
        """Flags of each of so many subjects in company, and the base's own."""
        from fusion_study.arms import ARMS, FUSED, LEARNT

        many = self.options.pictures // PROMPTS
        if arm != FUSED[0]:
            many = max(1, int(many / count + 0.5))
        ready: list[Any] = []
        flags = []
        for index, one in [*enumerate(LEARNT[:count]), (BASE_NOISE, None)]:

            def judged(index: int = index, one: Any = one) -> list:
                if not ready:
                    ready.append(ARMS[arm](self.base, self.concepts(count)))
                return self._judged(f"{arm} of {count}", ready[0], one, index, many)

            flags.append(self.kept([arm, count, index, many], judged))
        return flags

    def cost(self) -> dict[str, Any]:
        """Seconds and memory of fusions of two, four and eight, each in a process of its own."""
        from fusion_study.cost import measured

        self.learning()  # nothing is to be learnt where memory is measured
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
            self.kept_wide(["wide", *layer, rows, threads], lambda w=layer: wide_layer(*w, rows))
            for layer in WIDE
        ]

    def real_width(self) -> dict[str, Any]:
        """A whole fusion and its memory by number of concepts, and one site of every kind."""
        from fusion_study.real_width import CONCEPTS, MEMORY_COUNTS, SITES, measured

        how = (self.options.real_steps, self.options.real_side, self.options.threads)
        return {
            case: self.kept_wide(["real width", case, *how], lambda c=case: measured(c, *how))
            for case in map(str, (CONCEPTS, *MEMORY_COUNTS, SITES))
        }

    def _judged(self, arm: str, ready: Any, one: Any, index: int, many: int) -> list[list[bool]]:
        """Identity, colour and background of every picture; without a subject the base's own."""
        from fusion_study.arms import draw
        from toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing, caption

        flags: list[list[bool]] = []
        for number in range(PROMPTS):
            colour, ground = list(COLOURS)[number % 5], BACKGROUNDS[number // 5]
            subject = None if one is None else one.subject
            kind = BASE_CLASSES[number % len(BASE_CLASSES)] if subject is None else subject.kind
            scene = Scene((Thing(kind, colour),), ground)
            text = caption(scene) if one is None else one.text(scene)
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
