"""Measure the cost of a step with regions at real widths with random weights, in a new process.

``python3 benchmarks/run.py regions --timed SD1.5`` prints one line of JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import comfy.hooks
import comfy.ldm.flux.model
import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfyui.toy_base import toy_checkpoint
from pack.lora_ops import Box, LowRank, Region
from pack.nodes.regions.layout.sets import KEEPS_A_CELL
from pack.nodes.regions.sampling.apply import with_regions
from pack.nodes.regions.sampling.loras import AREA
from pack.nodes.regions.sampling.prompts import RegionConditioning, RegionPrompts
from pack.nodes.regions.sampling.run import MEAN
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import lora_state
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nodes

from ..shared.process_memory import measure_in_process
from ..shared.real_width import TOY_BASE, Case, load_base, random_state

NETWORKS = ("SD1.5", "Flux", TOY_BASE)
# The time of a run of one step is subtracted from that of a run with this many more steps, so that
# work that a run does once is reported separately.
STEPS = 3
TOY_SIDE = 16
REGIONS, RANK, TOKENS, FLUX_TOKENS = 3, 16, 77, 256
PLAIN, REGIONAL, WITH_LORAS = "plain sampling", "regions", "regions, each with a LoRA"
MASKED, HOOKED = "core's masked prompts", "core's masked prompts, each with a hook LoRA"
APART = "one sampler for each region"
# Flux's head size, norms and layout, with fewer and narrower blocks, so that it fits any machine.
FLUX = {
    "hidden_size": 1024,
    "num_heads": 8,
    "depth": 3,
    "depth_single_blocks": 6,
    "context_in_dim": 4096,
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "mlp_ratio": 4.0,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


Run = Callable[[int], None]  # samples with this number of steps


def measure_in_new_process(network: str, side: int, repeats: int, threads: int) -> dict[str, Any]:
    """Run the measurement in a new process and return it."""
    arguments = ["--timed", network, "--side", str(side), "--repeats", str(repeats)]
    return measure_in_process("regions", [*arguments, "--threads", str(threads)])


def measure(network: str, side: int, repeats: int, threads: int) -> dict[str, Any]:
    """Return the seconds of a step by arm, and for Flux the operations of a step.

    Args:
        network: One of ``NETWORKS``.
        side: Side of the latent.
        repeats: Number of timed runs of each arm, in turns; the median is returned.
        threads: Number of CPU threads.
    """
    torch.set_num_threads(threads)
    side = TOY_SIDE if network == TOY_BASE else side
    arms = _flux_arms(side) if network == "Flux" else _unet_arms(_unet(network, side), side)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    once: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms:
        arms[arm](1)  # loads the model and warms the caches
    for _ in range(repeats):
        for arm, run in arms.items():
            short, long = (_seconds_of(run, steps) for steps in (1, 1 + STEPS))
            seconds[arm].append((long - short) / STEPS)
            once[arm].append(short - seconds[arm][-1])
    found: dict[str, Any] = {
        "device": _device(),
        "latent": side,
        "threads": threads,
        "seconds": {arm: statistics.median(values) for arm, values in seconds.items()},
        "once": {arm: statistics.median(values) for arm, values in once.items()},
    }
    if network == "Flux":
        found["operations"] = {arm: _operations(run) for arm, run in arms.items()}
    return found


def _seconds_of(run: Run, steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return time.perf_counter() - started


def _unet(network: str, side: int) -> Any:
    if network == TOY_BASE:
        return comfy.sd.load_checkpoint_guess_config(str(toy_checkpoint()))[0]
    return load_base(Case("SD1.5", "float32", side, 2, False))


def _unet_arms(model: Any, side: int) -> Mapping[str, Run]:
    texts = [_text(TOKENS, 768, seed) for seed in range(2 + 2 * REGIONS)]
    sites = training_sites(model, "attention")
    loras = [lora_state(_factors(sites, seed), {}) for seed in range(REGIONS)]
    latent = {"samples": torch.zeros(1, 4, side, side)}
    mask = torch.zeros(REGIONS, 8 * side, 8 * side)
    for number in range(REGIONS):
        mask[number, :, 8 * number * side // REGIONS : 8 * (number + 1) * side // REGIONS] = 1.0

    def masked(hooked: bool) -> list:
        parts = []
        for number in range(REGIONS):
            text = texts[2 + number]
            if hooked:
                hooks = comfy.hooks.create_hook_lora(dict(loras[number]), 1.0, 0.0)
                text = comfy.hooks.set_hooks_for_conditioning(text, hooks)
            parts += nodes.ConditioningSetMask().append(
                text, mask[number : number + 1], "default", 1.0
            )[0]
        return parts

    def sample(model: Any, positive: list, times: int = 1) -> Run:
        def run(steps: int) -> None:
            for _ in range(times):
                nodes.KSampler().sample(
                    model, 0, steps, 7.0, "euler", "normal", positive, texts[1], latent
                )

        return run

    return {
        PLAIN: sample(model, texts[0]),
        REGIONAL: sample(_regional(model, texts, None), texts[0]),
        WITH_LORAS: sample(_regional(model, texts, loras), texts[0]),
        MASKED: sample(model, masked(False)),
        HOOKED: sample(model, masked(True)),
        APART: sample(model, texts[0], REGIONS),
    }


def _flux_arms(side: int) -> Mapping[str, Run]:
    with torch.device("meta"):
        layout = comfy.ldm.flux.model.Flux(
            **FLUX, operations=comfy.ops.disable_weight_init, dtype=torch.float32
        )
    model = comfy.sd.load_diffusion_model_state_dict(random_state(layout))
    texts = [
        _text(FLUX_TOKENS, FLUX["context_in_dim"], seed, pooled=768)
        for seed in range(2 + 2 * REGIONS)
    ]
    latent = {"samples": torch.zeros(1, 16, side, side)}

    def sample(model: Any) -> Run:
        def run(steps: int) -> None:
            nodes.KSampler().sample(
                model, 0, steps, 1.0, "euler", "simple", texts[0], texts[1], latent
            )

        return run

    return {PLAIN: sample(model), REGIONAL: sample(_regional(model, texts, None))}


def _regional(model: Any, texts: list, loras: list | None) -> Any:
    names = [f"{number}" for number in range(REGIONS)]
    regions = [
        Region(name, Box(i / REGIONS, 0, (i + 1) / REGIONS, 1)) for i, name in enumerate(names)
    ]
    prompts = tuple(
        RegionConditioning(
            name,
            texts[2 + i],
            texts[2 + REGIONS + i],
            () if loras is None else ((loras[i], 1.0),),
        )
        for i, name in enumerate(names)
    )
    region_prompts = RegionPrompts("", prompts)
    return with_regions(model, regions, region_prompts, KEEPS_A_CELL, MEAN, False, AREA)


def _text(tokens: int, width: int, seed: int, pooled: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    options = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, tokens, width, generator=generator), options]]


def _factors(sites: Mapping[str, Any], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(RANK, site.shape[1], generator=generator) / site.shape[1] ** 0.5,
            torch.randn(site.shape[0], RANK, generator=generator) * 0.01,
        )
        for name, site in sites.items()
    }


def _operations(run: Run) -> int:
    counter = FlopCounterMode(display=False)
    # The counter cannot count fused attention; the MATH backend computes it as matrix products.
    with sdpa_kernel(SDPBackend.MATH), counter:
        run(1)
    return counter.get_total_flops()


def _device() -> str:
    device = comfy.model_management.get_torch_device()
    return f"{comfy.model_management.get_torch_device_name(device)}"
