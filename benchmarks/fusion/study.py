"""Evaluate gradient fusion on the toy base: ``python3 benchmarks/run.py fusion``; resumable.

Two, four and eight subjects are trained separately: held-out classes, marks and a style, as
concepts and as ordinary LoRAs. They are fused, averaged and stacked; each is judged on its own
prompts, and so are the base's own abilities. The study also measures the cost of a fusion by number
of concepts, compares the closed form with the authors' optimiser on the same activations, and runs
a whole fusion at real widths. ``--part``, and ``--arm`` for the part identity, compute only a part
of the results, so that processes can share the work; ``--part learning`` must end first. The
results are written to
``benchmarks/results/fusion.md`` and ``fusion.json``.
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
from pack.lora_ops import STAGE_DAMPING
from pack.training.files.concept import Concept

from ..shared.cache import ResultCache
from ..shared.toy_base import GUIDED_SAMPLING, SAMPLING, Setup, load_setup
from ..toyworld.world import BACKGROUNDS, BASE_CLASSES, COLOURS, Scene, Thing, caption
from . import cost, real_width, solvers
from .arms import (
    ALONE,
    ARMS,
    BASE,
    BUDGET,
    DRAWING_STEPS,
    FUSED,
    LAYERS,
    LEARNT,
    SIDE,
    VERSION,
    DrawingModel,
    draw,
    learn,
    with_summed_loras,
)
from .protocol import BASE_NOISE, NOISE, PARTS, PROMPTS
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    options = _options(arguments)
    if options.real is not None:
        size_options = (options.real_steps, options.real_side, options.threads)
        print(json.dumps(real_width.measure(options.real, *size_options)))
        return 0
    study = Study(load_setup(options.threads), options)
    if options.cost is not None:
        print(json.dumps(cost.measure(study.base, study.concepts(options.cost))))
        return 0
    found = {part: getattr(study, part)() for part in options.part or PARTS}
    if options.part is None:
        write_report(options.out, study.metadata(), found)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fusion", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--pictures",
        type=int,
        default=200,
        help="pictures of each subject, alone and in the default fusion, and of the base; "
        "other arms draw about as many of all subjects together",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rows", type=int, default=16_384, help="input rows of a concept at real width"
    )
    parser.add_argument("--real-steps", type=int, default=2, help="sampling steps at real width")
    parser.add_argument(
        "--real-side", type=int, default=256, help="side of the pictures at real width, in pixels"
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="compute this part only and write no report"
    )
    parser.add_argument("--arm", action="append", help="compute this arm of the part identity only")
    parser.add_argument(
        "--cost", type=int, help="measure a fusion of this many concepts and print JSON"
    )
    parser.add_argument(
        "--real", help="measure this many concepts, or sites, at real width and print JSON"
    )
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "fusion.md")
    options = parser.parse_args(arguments)
    if options.arm is not None and options.part != ["identity"]:
        parser.error("--arm needs --part identity and no other part")
    if options.pictures % PROMPTS:
        parser.error(f"--pictures must be a multiple of {PROMPTS}, got {options.pictures}")
    options.counts.sort()
    return options


class Study:
    """The measurements of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.judge = setup, setup.base, setup.judge
        self.options, self.budget = options, BUDGET
        basis = [setup.base_digest, setup.judge.hash, asdict(BUDGET), GUIDED_SAMPLING]
        basis += [repr(LEARNT), STAGE_DAMPING, DRAWING_STEPS, SIDE, VERSION, LAYERS]
        self.cache = ResultCache(cache_folder() / "fusion_study", basis)
        # Measurements with random weights do not depend on the toy base.
        self.wide_cache = ResultCache(self.cache.folder, [STAGE_DAMPING, VERSION])
        self._trained: list[Concept] = []

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            **asdict(self.budget),
            "layers": LAYERS,
            "sampling": SAMPLING,
            "pictures": self.options.pictures,
            "drawing steps of fusion": DRAWING_STEPS,
            "damping": STAGE_DAMPING,
            "version": VERSION,
        }

    def concepts(self, count: int) -> tuple[Concept, ...]:
        """Return the first ``count`` subjects, trained."""
        for one in LEARNT[len(self._trained) : count]:
            self._trained.append(learn(self.base, one))
        return tuple(self._trained[:count])

    def learning(self) -> list[str]:
        """Train all subjects and return their words."""
        return [one.name for one in self.concepts(self.options.counts[-1])]

    def identity(self) -> dict[str, Any]:
        """Return flags for identity, colour and background, by arm, count and subject."""
        known = [ALONE, BASE, *ARMS]
        arms = self.options.arm or known
        unknown = [arm for arm in arms if arm not in known]
        if unknown:
            raise RuntimeError(f"--arm must be one of {', '.join(known)}, got {unknown[0]}")
        whole = self.options.pictures // PROMPTS
        found: dict[str, Any] = {}
        if BASE in arms:
            plain = DrawingModel(self.base.model, self.base.clip, ())
            found[BASE] = self.cache.get(
                [BASE, whole], lambda: self._judge_pictures(BASE, plain, None, BASE_NOISE, whole)
            )
        if ALONE in arms:
            for index, one in enumerate(LEARNT[: self.options.counts[-1]]):

                def judge_alone(index: int = index, one: Any = one) -> list:
                    own = self.concepts(index + 1)[index:]
                    return self._judge_pictures(
                        ALONE, with_summed_loras(self.base, own, 1.0), one, index, whole
                    )

                found.setdefault(ALONE, []).append(
                    self.cache.get([ALONE, index, whole], judge_alone)
                )
        for arm in (arm for arm in arms if arm in ARMS):
            found[arm] = {
                str(count): self._combined_flags(arm, count) for count in self.options.counts
            }
        return found

    def _combined_flags(self, arm: str, count: int) -> list[list[list[bool]]]:
        """Return the flags of each of ``count`` combined subjects, then those of the base."""
        many = self.options.pictures // PROMPTS
        if arm != FUSED[0]:
            many = max(1, int(many / count + 0.5))
        models: list[Any] = []  # built only if a result is missing
        flags = []
        for index, one in [*enumerate(LEARNT[:count]), (BASE_NOISE, None)]:

            def judge(index: int = index, one: Any = one) -> list:
                if not models:
                    models.append(ARMS[arm](self.base, self.concepts(count)))
                return self._judge_pictures(f"{arm} of {count}", models[0], one, index, many)

            flags.append(self.cache.get([arm, count, index, many], judge))
        return flags

    def cost(self) -> dict[str, Any]:
        """Return seconds and memory of fusions by count, each measured in a new process."""
        self.learning()  # the measured process must not train
        threads = self.options.threads
        return {
            str(count): self.cache.get(
                ["cost", count, threads], lambda c=count: cost.measure_in_new_process(c, threads)
            )
            for count in self.options.counts
        }

    def solvers(self) -> list[dict[str, Any]]:
        """Return the comparison with the authors' optimiser on every layer's own activations."""
        count = self.options.counts[0]
        key = ["solvers", count, self.options.threads]
        return self.cache.get(key, lambda: solvers.whole_base(self.base, self.concepts(count)))

    def wide(self) -> list[dict[str, Any]]:
        """Return the comparison on one layer of each kind at real width, on power-law inputs."""
        threads, rows = self.options.threads, self.options.rows
        return [
            self.wide_cache.get(
                ["wide", *layer, rows, threads], lambda w=layer: solvers.wide_layer(*w, rows)
            )
            for layer in solvers.WIDE
        ]

    def real_width(self) -> dict[str, Any]:
        """Return the costs of whole fusions at real width, and of one site of every kind."""
        size_options = (self.options.real_steps, self.options.real_side, self.options.threads)
        return {
            case: self.wide_cache.get(
                ["real width", case, *size_options],
                lambda c=case: real_width.measure_in_new_process(c, *size_options),
            )
            for case in map(str, (real_width.CONCEPTS, *real_width.MEMORY_COUNTS, real_width.SITES))
        }

    def _judge_pictures(
        self, arm: str, model: Any, one: Any, index: int, many: int
    ) -> list[list[bool]]:
        """Return flags for identity, colour and background of every picture.

        Args:
            arm: Name of the arm, for the log.
            model: Model that draws.
            one: Subject or style; None to judge the base's own classes.
            index: Number that selects the noise.
            many: Pictures per prompt.
        """
        flags: list[list[bool]] = []
        for number in range(PROMPTS):
            colour, ground = list(COLOURS)[number % 5], BACKGROUNDS[number // 5]
            subject = None if one is None else one.subject
            kind = BASE_CLASSES[number % len(BASE_CLASSES)] if subject is None else subject.kind
            scene = Scene((Thing(kind, colour),), ground)
            text = caption(scene) if one is None else one.text(scene)
            noise = NOISE + 1000 * index + number
            reading = self.judge.read(draw(self.base, model, text, noise, many))
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
