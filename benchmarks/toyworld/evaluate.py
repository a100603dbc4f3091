"""Evaluate an assembled toy base: ``python benchmarks/toyworld/evaluate.py checkpoint``.

Needs COMFYUI_PATH. Writes ``benchmarks/results/toyworld.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.append(str(HERE.parent))

from intervals import wilson  # noqa: E402
from toyworld.assemble import metadata_of  # noqa: E402
from toyworld.judge import Judge, through_vae  # noqa: E402
from toyworld.readable import THRESHOLD, ceilings, is_scored, rights, to_tensor  # noqa: E402
from toyworld.sampler import CFG, SAMPLER, STEPS, StockSampler  # noqa: E402
from toyworld.vae import TinyVAE  # noqa: E402
from toyworld.world import STYLES, Scene, caption, random_scene, world_hash  # noqa: E402

RESULTS = HERE.parent / "results"
BATCH = 20
AIMS = ("object", "colour", "background", "style")  # each right at 90 % on one-object prompts


def rate(flags: list[bool]) -> dict[str, float]:
    """A rate with its count and interval."""
    low, high = wilson(sum(flags), len(flags))
    return {"right": sum(flags), "count": len(flags), "low": low, "high": high}


def draw(sampler: StockSampler, scenes: list[Scene], seed: int, cfg: float) -> Tensor:
    """One sampled picture per scene's caption."""
    parts = []
    for start in range(0, len(scenes), BATCH):
        some = scenes[start : start + BATCH]
        prompts = [caption(scene) for scene in some]
        parts.append(sampler.sample(prompts, seed + start, width=some[0].width, cfg=cfg))
        logging.info("sampled %d of %d", start + len(some), len(scenes))
    return torch.cat(parts)


def single(
    sampler: StockSampler, judge: Judge, table: dict, held_out: bool, count: int, cfg: float
) -> dict[str, dict[str, float]]:
    """Rates of one-object prompts; attributes the judge cannot read in a style are left out."""
    generator = np.random.RandomState(1 + held_out)
    scenes = [random_scene(generator, held_out=held_out) for _ in range(count)]
    right = rights(scenes, judge.read(draw(sampler, scenes, 1000, cfg)))
    rows = {}
    for name, flags in right.items():
        scored = [f for f, s in zip(flags, scenes, strict=True) if is_scored(table, s, name)]
        rows[name] = rate(scored)
    kinds = sorted({scene.things[0].kind for scene in scenes})
    for kind in kinds:
        pairs = zip(right["object"], scenes, strict=True)
        rows[f"object: {kind}"] = rate([f for f, s in pairs if s.things[0].kind == kind])
    return rows


def double(
    sampler: StockSampler, judge: Judge, held_out: bool, count: int, cfg: float
) -> dict[str, dict[str, float]]:
    """Rates of two-object prompts on 2:1 canvases, each object in its half."""
    generator = np.random.RandomState(11 + held_out)
    scenes = [
        random_scene(generator, objects=2, wide=True, held_out=held_out) for _ in range(count)
    ]
    halves = judge.read_halves(draw(sampler, scenes, 5000, cfg))
    rows: dict[str, list[bool]] = {"object in its half": [], "colour in its half": []}
    both = [True] * count
    for side, reading in enumerate(halves):
        for index, scene in enumerate(scenes):
            thing = scene.things[side]
            rows["object in its half"].append(reading.object[index] == thing.kind)
            rows["colour in its half"].append(reading.colour[index] == thing.colour)
            both[index] &= reading.object[index] == thing.kind
    return {**{name: rate(flags) for name, flags in rows.items()}, "both objects": rate(both)}


def quantisation(
    sampler: StockSampler, exact: StockSampler, judge: Judge, count: int, cfg: float
) -> dict[str, float]:
    """What int8 costs: both files' rates on the same prompts and noise, and their distance."""
    generator = np.random.RandomState(31)
    scenes = [random_scene(generator) for _ in range(count)]
    stored, unquantised = draw(sampler, scenes, 9000, cfg), draw(exact, scenes, 9000, cfg)
    answers: dict[str, float] = {"prompts": count}
    for name, pictures in (("int8", stored), ("fp16", unquantised)):
        for attribute, flags in rights(scenes, judge.read(pictures)).items():
            answers[f"{name} {attribute}"] = float(np.mean(flags))
    answers["mean pixel difference"] = (stored - unquantised).abs().mean().item()
    return answers


def spread(sampler: StockSampler, vae: TinyVAE, cfg: float, prompts: int = 6) -> float:
    """Mean pixel deviation over eight seeds of a prompt, as a share of the true renders'."""
    generator = np.random.RandomState(21)
    drawn, true = [], []
    for _ in range(prompts):
        scene = random_scene(generator)
        drawn.append(sampler.sample([caption(scene)] * 8, 77, cfg=cfg).std(dim=0).mean().item())
        jittered = [Scene(scene.things, scene.background, scene.style, seed=s) for s in range(8)]
        true.append(through_vae(vae, to_tensor(jittered)).std(dim=0).mean().item())
    return float(np.mean(drawn) / np.mean(true))


def _line(name: str, group: str, row: dict[str, float]) -> str:
    share = row["right"] / max(1, row["count"])
    interval = f"{row['low']:.2f}–{row['high']:.2f}"
    return f"| {group} | {name} | {row['right']} / {row['count']} | {share:.2f} | {interval} |"


def report(result: dict) -> str:
    """The markdown page of a result."""
    lines = [
        "# The toy base",
        "",
        f"World `{result['world']}`, judge `{result['judge']}`, {result['unet_steps']} UNet steps,",
        f"{SAMPLER} {STEPS} steps, CFG {result['cfg']}, stock ComfyUI nodes on the assembled file.",
        "An attribute is scored only where the judge reads it at 95 % on round-tripped true",
        "renders: object, colour and background per style, style per style and background.",
        "Intervals are Wilson's at 95 %.",
        "",
        "| prompts | right | count | rate | interval |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group, rows in result["rates"].items():
        lines += [_line(name, group, row) for name, row in rows.items()]
    lines += ["", f"Spread over seeds: {result['spread']:.2f} of the true renders'.", ""]
    if "quantisation" in result:
        cells = ", ".join(f"{k} {v:.3g}" for k, v in result["quantisation"].items())
        lines += [f"Cost of int8 against fp16, same prompts and noise: {cells}.", ""]
    lines += ["The judge on round-tripped true renders:", ""]
    lines += ["| style | object | colour | background | style |", "| --- | --- | --- | --- | --- |"]
    for style in STYLES:
        cells = " | ".join(f"{result['ceilings'][style][name]:.2f}" for name in AIMS)
        lines.append(f"| {style} | {cells} |")
    weak = {
        name: row["style"]
        for name, row in result["ceilings"].items()
        if " on " in name and row["style"] < THRESHOLD
    }
    cells = ", ".join(f"{name} {share:.2f}" for name, share in weak.items())
    lines += ["", f"Style is therefore not scored on: {cells or 'nothing'}."]
    lines += ["", "By class, base styles together: "]
    lines += [", ".join(f"{k} {v:.2f}" for k, v in result["ceilings"]["classes"].items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cfg", type=float, default=CFG)
    parser.add_argument("--seen", type=int, default=120)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--double", type=int, default=50, help="per side of the split")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp16", type=Path, help="the same weights without int8, to compare")
    parser.add_argument("--out", type=Path, default=RESULTS / "toyworld.md")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    sampler = StockSampler(Path(os.environ["COMFYUI_PATH"]), options.checkpoint.resolve())
    vae = TinyVAE.from_checkpoint(options.checkpoint)
    judge = Judge(vae)
    table = ceilings(judge, vae)
    result = {
        "world": world_hash(),
        "judge": judge.hash,
        "unet_steps": metadata_of(options.checkpoint)["unet_steps"],
        "cfg": options.cfg,
        "ceilings": table,
        "rates": {
            "one object, seen": single(sampler, judge, table, False, options.seen, options.cfg),
            "one object, held out": single(
                sampler, judge, table, True, options.held_out, options.cfg
            ),
        },
    }
    if options.double:
        for name, held_out in (("two objects, seen", False), ("two objects, held out", True)):
            result["rates"][name] = double(sampler, judge, held_out, options.double, options.cfg)
    result["spread"] = spread(sampler, vae, options.cfg)
    if options.fp16:
        exact = StockSampler(Path(os.environ["COMFYUI_PATH"]), options.fp16.resolve())
        result["quantisation"] = quantisation(sampler, exact, judge, 40, options.cfg)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report(result), encoding="utf-8")
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
