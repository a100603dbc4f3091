"""Evaluate regions on the toy base: ``python3 benchmarks/run.py regions``; resumable.

The study draws two things of different colours side by side, each in its region. It applies a LoRA
in one region, and an outline that must be followed in one region only. It also measures the cost of
a step at SD1.5's and Flux's real widths. ``--part`` computes one part only, so that processes can
share the work. The results are written to ``benchmarks/results/regions.md`` and ``regions.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from environment import cache_folder

from ..shared.cache import ResultCache, source_digest
from ..shared.toy_base import SAMPLING, Setup, load_setup
from ..toyworld.world import Scene
from . import adapters, layouts, speed
from .outlines import OutlineStudy
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]
PARTS = ("layouts", "adapters", "outlines", "speed")
BATCH = 20
FIRST_NOISE = 60_000


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="regions", description=__doc__)
    parser.add_argument("--layouts", type=int, default=200, help="layouts per canvas")
    parser.add_argument("--pictures", type=int, default=100, help="pictures per adapter and seed")
    parser.add_argument("--outlines", type=int, default=100, help="layouts with an outline")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per adapter")
    parser.add_argument(
        "--outline-steps", type=int, default=1500, help="training steps of the T2I-Adapter"
    )
    parser.add_argument(
        "--side", type=int, default=64, help="side of the latent in the timed steps"
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="compute this part only and write no report"
    )
    parser.add_argument("--timed", help="time this network and print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "regions.md")
    options = parser.parse_args(arguments)
    if options.timed:
        found = speed.measure(options.timed, options.side, options.repeats, options.threads)
        print(json.dumps(found))
        return 0
    study = Study(load_setup(options.threads), options)
    found = {part: getattr(study, part)() for part in options.part or PARTS}
    if options.part is None:
        write_report(options.out, study.metadata(), found)
    return 0


class Study:
    """The pictures of the study, each batch stored in the cache as soon as it is read."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.judge = setup, setup.base, setup.judge
        self.options = options
        self.folder = cache_folder() / "regional_study"
        self.cache = ResultCache(self.folder, [setup.base_digest, setup.judge.hash])

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        return {
            **self.setup.metadata,
            "sampling": SAMPLING,
            "layouts": self.options.layouts,
            "pictures per adapter": self.options.pictures * self.options.seeds,
            "outlines": self.options.outlines,
        }

    def layouts(self) -> dict[str, dict[str, list]]:
        """Return flags for kind and colour, ``(layout, thing, flag)``, by canvas and arm."""
        found: dict[str, dict[str, list]] = {}
        for canvas in layouts.CANVASES:
            scenes = layouts.layouts_of(canvas, self.options.layouts)
            found[canvas] = {}
            for arm in layouts.arms_of(canvas):
                flags = []
                for start in range(0, len(scenes), BATCH):
                    part = scenes[start : start + BATCH]
                    key = ["layouts", _code_digest("layouts"), canvas, arm, start, len(part)]
                    flags += self.cache.get(
                        key,
                        lambda a=arm, c=canvas, p=part, s=start: self._draw_and_read_layouts(
                            a, c, p, s
                        ),
                    )
                found[canvas][arm] = flags
                self._print_rate(f"{canvas}, {arm}", np.array(flags).all(-1))
        return found

    def _draw_and_read_layouts(
        self, arm: str, canvas: str, scenes: list[Scene], start: int
    ) -> list:
        return layouts.ARMS[arm](self.base, self.judge, canvas, scenes, FIRST_NOISE + start)

    def adapters(self) -> dict[str, dict[str, list]]:
        """Return flags by adapter and arm, ``(training, picture)``."""
        found: dict[str, dict[str, list]] = {}
        for adapter in adapters.ADAPTERS:
            found[adapter] = {arm: [] for arm in adapters.ARMS}
            for seed in range(self.options.seeds):
                for arm in adapters.ARMS:
                    key = [
                        "adapters",
                        _code_digest("adapters"),
                        adapter,
                        arm,
                        seed,
                        self.options.pictures,
                    ]
                    flags = self.cache.get(
                        key, lambda a=adapter, m=arm, s=seed: self._draw_and_read_adapter(a, m, s)
                    )
                    found[adapter][arm].append(flags)
                    self._print_rate(f"{adapter}, {arm}, seed {seed}", np.array(flags))
        return found

    def _draw_and_read_adapter(self, adapter: str, arm: str, seed: int) -> list:
        cell = adapters.Cell(self.base, self.judge, adapter, seed)
        flags: list = []
        for start in range(0, self.options.pictures, BATCH):
            count = min(BATCH, self.options.pictures - start)
            flags += adapters.ARMS[arm](cell, start, count)
        return flags

    def outlines(self) -> dict[str, list]:
        """Return whether the outline's kind was drawn, ``(layout,)``, by the outline's weight."""
        study = OutlineStudy(self.base, self.judge, self.folder, self.options.outline_steps)
        flags: dict[str, list] = {}
        for start in range(0, self.options.outlines, BATCH):
            count = min(BATCH, self.options.outlines - start)
            part = self.cache.get(
                ["outlines", _code_digest("outlines"), study.digest, start, count],
                lambda s=start, c=count: study.flags(s, c),
            )
            for weight, values in part.items():
                flags.setdefault(weight, []).extend(values)
        for weight, values in flags.items():
            self._print_rate(f"outline at {weight}", np.array(values))
        return flags

    def speed(self) -> dict[str, dict]:
        """Return seconds and operations of a step by network, each measured in a new process."""
        options = self.options
        return {
            network: self.cache.get(
                [
                    "speed",
                    _code_digest("speed"),
                    network,
                    options.side,
                    options.repeats,
                    options.threads,
                ],
                lambda n=network: speed.measure_in_new_process(
                    n, options.side, options.repeats, options.threads
                ),
            )
            for network in speed.NETWORKS
        }

    @staticmethod
    def _print_rate(what: str, flags: np.ndarray) -> None:
        print(f"{what}: {flags.mean():.3f} of {flags.size}", flush=True)


def _code_digest(part: str) -> str:
    """Return a digest of the code that a part runs, so that no result of other code is reused."""
    pack = BENCHMARKS.parent
    files = [
        *(BENCHMARKS / "regions" / f"{name}.py" for name in {"layouts", part}),
        *(pack / "nodes" / "regions").rglob("*.py"),
        *(pack / "lora_ops" / name for name in ("regions.py", "mixing.py")),
    ]
    return source_digest(files)
