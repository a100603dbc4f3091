"""Measure a whole fusion at SD1.5's real widths, and one site of every kind of SDXL and Flux.

Weights, factors and inputs are random, because the cost does not depend on their values. Each
measurement runs in a new process: ``python3 benchmarks/run.py fusion --real 3`` prints one line of
JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import torch
from pack.lora_ops import LowRank, Target
from pack.nodes.bridge.families import identify
from pack.nodes.fusion import stages as fusion_stages
from pack.nodes.fusion.run import fuse
from pack.nodes.text.layer_contexts import context_layers
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.concept import TEXT_WIDTHS, Concept
from pack.training.files.lora_state import lora_state

from ..shared.process_memory import (
    MIB,
    RETURN_FREED_MEMORY,
    Growth,
    measure_in_process,
    track_growth,
)
from ..shared.real_width import Case, load_base, random_state
from .arms import fusion_request
from .solvers import solve_closed_form, statistics_of

SITES = "sites"
CONCEPTS, RANK, WORDS = 3, 4, 2
# Memory by number of concepts is measured with ordinary LoRAs and a single sampling step.
MEMORY_COUNTS, MEMORY_STEPS = (2, 8), 1


@dataclass(frozen=True)
class Site:
    """An input that layers of a network read.

    Args:
        network: Name of the network.
        kind: Kind of the layers that read the input.
        width: Width of an input row.
        outputs: Number of the layer's outputs.
        rows: Number of input rows of one concept.
    """

    network: str
    kind: str
    width: int
    outputs: int
    rows: int


_TEXT, _CONTEXT = 176, 6  # rows of a concept's prompts, in text encoders and in cross-attention
# Rows are those of one evaluation at 1024 pixels; text stages see their prompts once.
KINDS = (
    Site("SDXL", "text encoder L, q", 768, 768, _TEXT),
    Site("SDXL", "text encoder G, q", 1280, 1280, _TEXT),
    Site("SDXL", "cross-attention, k", 2048, 640, _CONTEXT),
    Site("SDXL", "cross-attention, k", 2048, 1280, _CONTEXT),
    Site("SDXL", "self-attention, q", 640, 640, 4096),
    Site("SDXL", "self-attention, q", 1280, 1280, 1024),
    Site("SDXL", "feed-forward, in", 640, 5120, 4096),
    Site("SDXL", "feed-forward, in", 1280, 10240, 1024),
    Site("SDXL", "feed-forward, out", 2560, 640, 4096),
    Site("SDXL", "feed-forward, out", 5120, 1280, 1024),
    Site("Flux", "image or text stream, qkv", 3072, 9216, 4096),
    Site("Flux", "image or text stream, projection", 3072, 3072, 4096),
    Site("Flux", "image or text stream, MLP in", 3072, 12288, 4096),
    Site("Flux", "image or text stream, MLP out", 12288, 3072, 4096),
    Site("Flux", "single block, linear1", 3072, 21504, 4608),
    Site("Flux", "single block, linear2", 15360, 3072, 4608),
)


def measure_in_new_process(case: str, steps: int, side: int, threads: int) -> Any:
    """Run ``measure`` with these arguments in a new process and return its result."""
    arguments = ["--real", case, "--real-steps", str(steps), "--real-side", str(side)]
    arguments += ["--threads", str(threads)]
    return measure_in_process("fusion", arguments, RETURN_FREED_MEMORY)


def measure(case: str, steps: int, side: int, threads: int) -> Any:
    """Return seconds and memory of a fusion, or of every kind of site.

    Args:
        case: ``SITES``, or the number of concepts. ``CONCEPTS`` have learnt words; any other number
            means ordinary LoRAs with ``MEMORY_STEPS``.
        steps: Number of sampling steps in which each concept is drawn.
        side: Side of the drawn pictures in pixels.
        threads: Number of CPU threads.
    """
    torch.set_num_threads(threads)
    with torch.inference_mode():
        if case == SITES:
            return [{**asdict(site), **_site(site)} for site in KINDS]
        return _fusion(int(case), steps, side)


def _fusion(count: int, steps: int, side: int) -> dict[str, Any]:
    """Return seconds and memory of a whole fusion, in total and by stage."""
    words = count == CONCEPTS
    steps = steps if words else MEMORY_STEPS
    model = load_base(Case("SD1.5", "float32", 64, 1, False))
    base = SimpleNamespace(model=model, clip=_clip())
    concepts = _concepts(model, count, words)
    full_request = fusion_request(base, concepts, steps=steps, size=side)
    # The first fusion also sets up what torch and ComfyUI keep for the whole process.
    fuse(fusion_request(base, _concepts(model, 2, False), steps=1, size=64))
    with track_growth() as growth, _stage_peaks(growth) as peaks:
        started = time.perf_counter()
        done = fuse(full_request)
        seconds = time.perf_counter() - started
    return {
        "concepts": count,
        "words": words,
        "steps": steps,
        "side": side,
        "layers": len(done.report.layers),
        "seconds": seconds,
        "peak_mib": growth.highest / MIB,
        "growth_mib": growth.increase / MIB,
        "stages": {
            stage.stage: {
                "layers": stage.layers,
                "collecting": stage.collecting_seconds,
                "solving": stage.solving_seconds,
                "statistics_mib": stage.statistics_bytes / MIB,
                "growth_mib": peaks[stage.stage] / MIB,
            }
            for stage in done.report.stages
        },
    }


@contextmanager
def _stage_peaks(growth: Growth) -> Iterator[dict[str, int]]:
    """Record the growth of memory in each stage; a stage ends when its layers are solved."""
    found: dict[str, int] = {}
    names = ("solve_from_grams", "solve_from_rows")
    solvers = {name: getattr(fusion_stages, name) for name in names}

    def with_peak(solve: Any) -> Any:
        def solve_and_record(layers: Sequence[Any], *others: Any) -> Any:
            solved = solve(layers, *others)
            found[layers[0].stage] = growth.lap()
            return solved

        return solve_and_record

    for name, solve in solvers.items():
        setattr(fusion_stages, name, with_peak(solve))
    try:
        yield found
    finally:
        for name, solve in solvers.items():
            setattr(fusion_stages, name, solve)


def _clip() -> Any:
    """Return SD1.5's text encoder at its real size with random weights."""
    path = Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        layout = comfy.clip_model.CLIPTextModel(
            config, torch.float32, None, comfy.ops.disable_weight_init
        )
    return comfy.sd.load_text_encoder_state_dicts([random_state(layout)])


def _concepts(model: Any, count: int, words: bool) -> list[Any]:
    """Return ``count`` concepts, or ordinary LoRAs, on the attention of text encoder and UNet."""
    width = TEXT_WIDTHS["clip_l"]
    shapes = {name: site.shape for name, site in training_sites(model, "attention").items()}
    shapes |= {
        f"lora_te_text_model_encoder_layers_{layer}_self_attn_{part}": (width, width)
        for layer in range(12)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    found = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        factors = {name: _factors(*shape, generator) for name, shape in shapes.items()}
        lora = lora_state(factors, {"modelspec.architecture": identify(model).architecture})
        rows = torch.randn(WORDS, context_layers(model), width, generator=generator) * 0.025
        prompts = () if words else (f"a photo of a red boat, number {number}",)
        found.append(
            Concept(f"thing{number}", "", {"clip_l": rows} if words else {}, lora, prompts=prompts)
        )
    return found


def _factors(outputs: int, width: int, generator: Any) -> Any:
    down = torch.randn(RANK, width, generator=generator) / width**0.5
    return LowRank(down, torch.randn(outputs, RANK, generator=generator) * 0.01)


def _site(site: Site) -> dict[str, Any]:
    """Return seconds and memory of one site's statistics and solution."""
    generator = torch.Generator().manual_seed(site.width + site.outputs)
    targets = [Target(_factors(site.outputs, site.width, generator)) for _ in range(CONCEPTS)]
    inputs = [torch.randn(site.rows, site.width, generator=generator) for _ in range(CONCEPTS)]
    stage = "text" if "text encoder" in site.kind else "spatial"
    few = "cross" in site.kind
    with track_growth() as growth:
        started = time.perf_counter()
        statistics = None if few else statistics_of(targets, inputs)
        collected = time.perf_counter() - started
        fused = solve_closed_form("cross" if few else stage, targets, inputs, statistics)
        seconds = time.perf_counter() - started
    held = sum(x.nbytes for x in inputs) if statistics is None else statistics.size
    return {
        "collecting": collected,
        "solving": seconds - collected,
        "statistics_mib": held / MIB,
        "growth_mib": growth.increase / MIB,
        "rank": fused.rank,
        "span": 0 if statistics is None or statistics.span is None else len(statistics.span),
    }
