"""Evaluate a base through stock ComfyUI nodes: ``python benchmarks/drawn/evaluate.py ASSET``.

The command prints a table of the aims; ``--out`` also writes it as JSON. Rates have Wilson intervals,
and prompts with one thing are counted separately for seen and for held-out combinations.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.append(str(HERE.parent))

from drawn.assemble import assemble, metadata_of  # noqa: E402
from drawn.judge import Judge, Reading  # noqa: E402
from drawn.masters import world_cache  # noqa: E402
from drawn.sampling import CFG, StockSampler  # noqa: E402
from drawn.scenes import Scene, Thing, caption, draw, held_out_combination  # noqa: E402
from drawn.vae import load_vae, round_trip  # noqa: E402
from drawn.vocabulary import COLOURS, GROUNDS, LEARNT_SETS, LEARNT_STYLES, LEARNT_THINGS  # noqa: E402

SEED = 777_000  # seed of the prompts and of the noise


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate."""
    if count == 0:
        return 0.0, 1.0
    z, p = 1.96, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def rate(flags: list[bool]) -> dict[str, float]:
    """Return the number of true flags, the number of flags, and the 95 % interval of their rate."""
    low, high = wilson(sum(flags), len(flags))
    return {"right": sum(flags), "count": len(flags), "low": low, "high": high}


def single_scenes(count: int, held_out: bool) -> list[Scene]:
    """Return scenes of one thing: all learnt things about equally often, half of them plain."""
    random = np.random.RandomState(SEED + held_out)
    names, scenes = list(LEARNT_THINGS), []
    while len(scenes) < count:
        name = names[len(scenes) % len(names)]
        style = "plain"
        if random.rand() < 0.5:
            style = LEARNT_STYLES[1 + random.randint(len(LEARNT_STYLES) - 1)]
        ground = list(GROUNDS)[random.randint(len(GROUNDS))]
        if held_out_combination(name, style, ground) != held_out:
            continue
        tint = style in LEARNT_SETS and random.rand() < 0.3
        colour = list(COLOURS)[random.randint(len(COLOURS))] if tint else None
        scenes.append(Scene((Thing(name, colour),), ground, style))
    return scenes


def pair_scenes(count: int) -> list[Scene]:
    """Return wide plain scenes of two things."""
    random = np.random.RandomState(SEED + 2)
    names = list(LEARNT_THINGS)
    scenes = []
    for _ in range(count):
        first, second = random.choice(len(names), 2, replace=False)
        things = Thing(names[first]), Thing(names[second])
        scenes.append(Scene(things, list(GROUNDS)[random.randint(len(GROUNDS))], wide=True))
    return scenes


def judged_singles(scenes: list[Scene], reading: Reading) -> dict[str, list[bool]]:
    """Return, by row of the table, whether the judge reads each scene as drawn."""
    rows: dict[str, list[bool]] = {"thing": [], "ground": [], "colour": [], "style": []}
    for number, scene in enumerate(scenes):
        thing = scene.things[0]
        rows["thing"].append(reading.thing[number] == thing.name)
        rows["ground"].append(reading.ground[number] == scene.ground)
        rows["style"].append(reading.style[number] == scene.style)
        if thing.colour is not None:
            rows["colour"].append(reading.colour[number] == thing.colour)
    return rows


def spread(pictures: Tensor, group: int) -> float:
    """Return the mean distance between pictures of one prompt; ``group`` in a row share a prompt."""
    values = []
    for part in pictures.flatten(1).split(group):
        distances = torch.cdist(part.double(), part.double())
        values.append(distances.sum().item() / (group * (group - 1)))
    return float(np.mean(values))


class Evaluation:
    """The measurements of a base, each of which gives rows of the table.

    Args:
        sampler: Sampler with the base, built of stock nodes.
        judge: Classifier of the samples.
        folder: Folder of the world, which holds its VAE.
        count: Number of prompts per row.
    """

    def __init__(self, sampler: StockSampler, judge: Judge, folder: Path, count: int) -> None:
        self.sampler, self.judge, self.folder, self.count = sampler, judge, folder, count

    def singles(self) -> dict[str, dict[str, float]]:
        """Return the rates of thing, ground, colour and style on prompts with one thing."""
        out = {}
        for held_out, name in ((False, "seen"), (True, "held out")):
            scenes = single_scenes(self.count, held_out)
            pictures = self.sampler.sample([caption(s) for s in scenes], SEED)
            rows = judged_singles(scenes, self.judge.read(pictures))
            out.update({f"{row}, {name}": rate(flags) for row, flags in rows.items()})
        return out

    def pairs(self) -> dict[str, dict[str, float]]:
        """Return the rate at which both things of a plain prompt are right in their halves."""
        scenes = pair_scenes(self.count)
        pictures = self.sampler.sample([caption(s) for s in scenes], SEED, wide=True)
        left, right = self.judge.read_halves(pictures)
        flags = [
            left.thing[n] == s.things[0].name and right.thing[n] == s.things[1].name
            for n, s in enumerate(scenes)
        ]
        return {"two things, each in its half": rate(flags)}

    def halves(self) -> dict[str, dict[str, float]]:
        """Return the rate at which a thing appears in the prompted half of a wide canvas only."""
        random = np.random.RandomState(SEED + 3)
        names = list(LEARNT_THINGS)
        flags, prompts, targets = [], [], []
        for number in range(self.count):
            name, half = names[number % len(names)], int(random.randint(2))
            ground = list(GROUNDS)[random.randint(len(GROUNDS))]
            text = caption(Scene((Thing(name),), ground, wide=True, half=half))
            phrase, rest = text.split(f" {GROUNDS[ground][0]}")
            prompts.append(f"{phrase} on the {('left', 'right')[half]} {GROUNDS[ground][0]}{rest}")
            targets.append((name, half))
        pictures = self.sampler.sample(prompts, SEED, wide=True)
        readings = self.judge.read_halves(pictures)
        for number, (name, half) in enumerate(targets):
            there, other = readings[half], readings[1 - half]
            flags.append(there.thing[number] == name and other.thing[number] != name)
        return {"one thing in half a wide canvas": rate(flags)}

    def seeds(self, prompts: int = 25, group: int = 8) -> dict[str, dict[str, float]]:
        """Return the spread over seeds relative to that of drawn scenes after the VAE."""
        scenes = single_scenes(prompts, False)
        texts = [caption(scene) for scene in scenes for _ in range(group)]
        drawn = spread(self.sampler.sample(texts, SEED), group)
        true = [
            draw(Scene(s.things, s.ground, s.style, seed=SEED + number))
            for s in scenes
            for number in range(group)
        ]
        x = torch.from_numpy(np.stack(true)).permute(0, 3, 1, 2).float() / 255
        vae = load_vae(self.folder / f"vae{self.sampler.channels}.pt")
        decoded = torch.cat([round_trip(vae, part) for part in x.split(40)])
        ratio = drawn / spread(decoded.permute(0, 2, 3, 1), group)
        return {"spread over seeds": {"ratio": ratio, "count": prompts * group}}


def main() -> None:
    """Evaluate an asset and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("asset", type=Path)
    parser.add_argument("--base", choices=("a", "b"), help="base that the asset must belong to")
    parser.add_argument("--count", type=int, default=400, help="number of prompts per row")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--rows", nargs="*", default=["singles", "pairs", "halves", "seeds"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    metadata = metadata_of(options.asset)
    if options.base not in (None, metadata["base"]):
        parser.error(f"the asset must be of base {options.base}, got one of {metadata['base']}")
    folder = world_cache() / metadata["world"]
    checkpoint = assemble(options.asset, world_cache() / f"drawn_{metadata['base']}.safetensors")
    sampler = StockSampler(Path(os.environ["COMFYUI_PATH"]), checkpoint, metadata["base"])
    evaluation = Evaluation(sampler, Judge(folder / "judge.pt"), folder, options.count)
    table: dict[str, dict[str, float]] = {}
    for row in options.rows:
        measured: Callable[[], dict[str, dict[str, float]]] = getattr(evaluation, row)
        table.update(measured())
    for name, values in table.items():
        if "ratio" in values:
            print(f"{name}: {values['ratio']:.2f}")
            continue
        share = values["right"] / max(1, values["count"])
        interval = f"{values['low']:.3f} to {values['high']:.3f}"
        print(f"{name}: {share:.3f} ({interval}, {values['count']:.0f} prompts)")
    if options.out:
        result = {"metadata": metadata, "cfg": CFG, "rows": table}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
