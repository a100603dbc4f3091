"""Regions on the toy base: ``python3 benchmarks/run.py regional``; resumable.

Two things side by side, each in its place with its own colour; an adapter for each region; an
outline that is followed in one region and not in the other; and what a step costs at SD1.5's and
Flux's real widths. ``--part`` fills the cache for one part alone, so that processes can share the
work. Writes ``benchmarks/results/regional.md`` and ``regional.json``.
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
PARTS = ("layouts", "adapters", "outlines", "speed")
BATCH = 20
FIRST_NOISE = 60_000


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="regional", description=__doc__)
    parser.add_argument("--layouts", type=int, default=200, help="per canvas")
    parser.add_argument("--pictures", type=int, default=100, help="per adapter and seed")
    parser.add_argument("--outlines", type=int, default=100, help="layouts with an outline")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per adapter")
    parser.add_argument("--outline-steps", type=int, default=1500, help="of the T2I-Adapter")
    parser.add_argument("--side", type=int, default=64, help="of the latent whose step is timed")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", action="append", choices=PARTS, help="fill the cache for it")
    parser.add_argument("--timed", help="time this network, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "regional.md")
    options = parser.parse_args(arguments)
    if options.timed:
        from regional_study.speed import measure

        print(json.dumps(measure(options.timed, options.side, options.repeats, options.threads)))
        return 0
    import pair

    study = Study(pair.Study.open(500, options.threads), options)
    found = {part: getattr(study, part)() for part in options.part or PARTS}
    if options.part is None:
        from regional_study.report import write_report

        write_report(options.out, study.facts(), found)
    return 0


class Study:
    """The pictures of the study, each batch kept in the cache as soon as it is read."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from environment import cache_folder
        from pair_study.kept import Kept

        self.base, self.judge, self.options = opened.base, opened.judge, options
        self.base_digest = opened.base_digest
        self.folder = cache_folder() / "regional_study"
        self.kept = Kept(self.folder, [self.base_digest, self.judge.hash])

    def facts(self) -> dict:
        """What the result rests on."""
        from pair import SAMPLING
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "judge": self.judge.hash,
            "base": self.base_digest,
            "sampling": SAMPLING.split(", window")[0],
            "layouts": self.options.layouts,
            "pictures per adapter": self.options.pictures * self.options.seeds,
            "outlines": self.options.outlines,
        }

    def layouts(self) -> dict[str, dict[str, list]]:
        """Both things' flags by canvas and arm, ``(layout, thing, flag)``: object and colour."""
        from regional_study.layouts import CANVASES, arms_of, layouts_of

        found: dict[str, dict[str, list]] = {}
        for canvas in CANVASES:
            scenes = layouts_of(canvas, self.options.layouts)
            found[canvas] = {}
            for arm in arms_of(canvas):
                flags = []
                for start in range(0, len(scenes), BATCH):
                    part = scenes[start : start + BATCH]
                    place = ["layouts", _source("layouts"), canvas, arm, start, len(part)]
                    flags += self.kept(
                        place, lambda a=arm, c=canvas, p=part, s=start: self._drawn(a, c, p, s)
                    )
                found[canvas][arm] = flags
                self._say(f"{canvas}, {arm}", np.array(flags).all(-1))
        return found

    def _drawn(self, arm: str, canvas: str, scenes: list, start: int) -> list:
        from regional_study.layouts import ARMS

        return ARMS[arm](self.base, self.judge, canvas, scenes, FIRST_NOISE + start)

    def adapters(self) -> dict[str, dict[str, list]]:
        """Flags by adapter and arm, ``(training, picture)``."""
        from regional_study.adapters import ADAPTERS, ARMS

        found: dict[str, dict[str, list]] = {}
        for adapter in ADAPTERS:
            found[adapter] = {arm: [] for arm in ARMS}
            for seed in range(self.options.seeds):
                for arm in ARMS:
                    place = [
                        "adapters",
                        _source("adapters"),
                        adapter,
                        arm,
                        seed,
                        self.options.pictures,
                    ]
                    flags = self.kept(
                        place, lambda a=adapter, m=arm, s=seed: self._adapted(a, m, s)
                    )
                    found[adapter][arm].append(flags)
                    self._say(f"{adapter}, {arm}, seed {seed}", np.array(flags))
        return found

    def _adapted(self, adapter: str, arm: str, seed: int) -> list:
        from regional_study.adapters import ARMS, Cell

        cell = Cell(self.base, self.judge, adapter, seed)
        flags: list = []
        for start in range(0, self.options.pictures, BATCH):
            count = min(BATCH, self.options.pictures - start)
            flags += ARMS[arm](cell, start, count)
        return flags

    def outlines(self) -> dict[str, list]:
        """Flags by the outline's weight, ``(layout,)``: whether its kind was drawn."""
        from regional_study.outlines import OutlineStudy

        study = OutlineStudy(self.base, self.judge, self.folder, self.options.outline_steps)
        flags: dict[str, list] = {}
        for start in range(0, self.options.outlines, BATCH):
            count = min(BATCH, self.options.outlines - start)
            part = self.kept(
                ["outlines", _source("outlines"), study.digest, start, count],
                lambda s=start, c=count: study.flags(s, c),
            )
            for weight, values in part.items():
                flags.setdefault(weight, []).extend(values)
        for weight, values in flags.items():
            self._say(f"outline at {weight}", np.array(values))
        return flags

    def speed(self) -> dict[str, dict]:
        """Seconds and operations of a step by network and arm, each network in a new process."""
        from regional_study.speed import NETWORKS, measured

        options = self.options
        return {
            network: self.kept(
                [
                    "speed",
                    _source("speed"),
                    network,
                    options.side,
                    options.repeats,
                    options.threads,
                ],
                lambda n=network: measured(n, options.side, options.repeats, options.threads),
            )
            for network in NETWORKS
        }

    @staticmethod
    def _say(what: str, flags: np.ndarray) -> None:
        print(f"{what}: {flags.mean():.3f} of {flags.size}", flush=True)


def _source(part: str) -> str:
    """Digest of what a part measures and of how: results of other code are not taken."""
    pack = BENCHMARKS.parent
    files = [
        *(BENCHMARKS / "regional_study" / f"{name}.py" for name in {"layouts", part}),
        *(pack / "nodes" / "regions").rglob("*.py"),
        *(pack / "lora_ops" / name for name in ("regions.py", "mixing.py")),
    ]
    read = hashlib.sha256()
    for file in sorted(files):
        read.update(file.read_bytes())
    return read.hexdigest()[:16]
