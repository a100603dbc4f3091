"""Compare forecast and measured peak memory: ``python3 benchmarks/run.py memory``.

The cases are the toy base, and SD1.5 and SDXL at their real widths with random weights, with and
without checkpointing. Every measurement runs two training steps in a new process. On a CPU it is
the growth of the resident set since before the model was made; on a GPU it is the most memory that
torch has allocated. Every case is stored in ``benchmarks/results/memory.json`` when it is measured;
``--again`` measures it again. The table is written to ``memory.md`` in the same folder.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import torch
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.memory_estimator import MemoryEstimator
from pack.nodes.trainer.target_layers import target_layers, training_sites
from pack.training import TrainingConfig, TrainingSettings, train
from pack.training.recipes.single import Single

from ..shared.process_memory import (
    MIB,
    RETURN_FREED_MEMORY,
    measure_in_process,
    peak,
    reset_peak,
    resident,
)
from ..shared.real_width import TOY_BASE, Case, load_base, random_examples

BENCHMARKS = Path(__file__).resolve().parents[1]
HIDE_GPU = {"CUDA_VISIBLE_DEVICES": ""}
CASES = [
    Case(base, dtype, size, rows, checkpointing)
    for base, dtype, size, rows in (
        (TOY_BASE, "float32", 8, 16),
        ("SD1.5", "float32", 32, 2),
        ("SDXL", "bfloat16", 32, 1),
        ("SDXL", "bfloat16", 64, 1),
    )
    for checkpointing in (False, True)
]


def main(arguments: Sequence[str]) -> int:
    """Measure every case in a new process and write the report."""
    parser = argparse.ArgumentParser(prog="memory", description=__doc__)
    parser.add_argument("--case", type=int, help="measure one case in this process, print JSON")
    parser.add_argument("--again", action="store_true", help="measure stored cases again")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "memory.md")
    options = parser.parse_args(arguments)
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case])))
        return 0
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    metadata = {"torch": torch.__version__, "machine": platform.machine()}
    if torch.cuda.is_available():
        metadata["gpu"] = torch.cuda.get_device_name()
    stored = options.out.with_suffix(".json")
    found = {}
    if stored.exists() and not options.again:
        found = json.loads(stored.read_text(encoding="utf-8"))["cases"]
    for number, case in enumerate(CASES):
        key = f"{case.label}, checkpointing {'on' if case.checkpointing else 'off'}"
        numbers = found.setdefault(key, {})
        for device in [device for device in devices if device not in numbers]:
            numbers[device] = _in_process(number, device)
            print(key, json.dumps(numbers), flush=True)
            text = json.dumps({**metadata, "cases": found}, indent=1) + "\n"
            stored.write_text(text, encoding="utf-8")
    options.out.write_text(report({**metadata, "cases": found}), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))
    return 0


def _in_process(number: int, device: str) -> dict:
    """Return one case's numbers, measured in a new process."""
    variables = {**RETURN_FREED_MEMORY, **(HIDE_GPU if device == "cpu" else {})}
    return measure_in_process("memory", ["--case", str(number)], variables)


def measure(case: Case) -> dict:
    """Forecast one case, train two steps of it on ComfyUI's device, and return all sizes in MB."""
    _warm_up()
    before = resident()
    model = load_base(case)
    settings = TrainingSettings(
        precision="bf16" if case.dtype == "bfloat16" else "fp32",
        checkpointing=case.checkpointing,
    )
    recipe = Single(random_examples(model, case), batch_size=case.rows)
    config = TrainingConfig(steps=2, rank=16, learning_rate=1e-4, seed=0)
    started = time.process_time()
    base = Base(model, None, None)
    layers = target_layers(base.layers, settings.targets)
    need = MemoryEstimator(base, layers, None, recipe).estimate(config, settings)
    seconds = time.process_time() - started
    on_gpu = comfy.model_management.get_torch_device().type == "cuda"
    if on_gpu:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    with open_denoiser(model, settings.precision, case.checkpointing) as denoiser:
        sites = training_sites(denoiser.patcher, settings.targets)
        train(denoiser, sites, recipe, config)
    highest = torch.cuda.max_memory_allocated() if on_gpu else peak() - before
    return {
        "forecast": round(need.total / MIB),
        "weights": round(need.weights / MIB),
        "learnt": round(need.learnt / MIB),
        "activations": round(need.activations / MIB),
        "measured": round(highest / MIB),
        "forecast_seconds": round(seconds, 1),
    }


def _warm_up() -> None:
    """Make torch set up its threads, kernels and autograd, which stay for the whole process."""
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    convolved = torch.nn.functional.conv2d(x, torch.randn(8, 8, 3, 3))
    torch.nn.functional.linear(convolved, torch.randn(32, 14)).square().sum().backward()


def report(result: dict) -> str:
    """Return the table as markdown."""
    lines = [
        "# Memory: forecast against measured peak",
        "",
        "What the pre-flight says before step 1, and the peak of two steps of training: of the",
        "resident set above what the process held before the model was made (freed memory given",
        "back at once), and of torch's allocations on a GPU. Rank 16, attention layers, AdamW;",
        f"the weights are random but for the toy base's. torch {result['torch']}, "
        f"{result['machine']}.",
        "",
        "| base | checkpointing | forecast | weights / learnt / step | CPU peak | off by "
        "| GPU peak | off by | forecast takes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, by_device in result["cases"].items():
        label, checkpointing = key.rsplit(", checkpointing ", 1)
        cpu, gpu = by_device["cpu"], by_device.get("cuda")
        parts = f"{cpu['weights']} / {cpu['learnt']} / {cpu['activations']} MB"
        on_gpu = f"{gpu['measured']} MB | {_off(gpu)}" if gpu else "not run: no GPU | "
        lines.append(
            f"| {label} | {checkpointing} | {cpu['forecast']} MB | {parts} | "
            f"{cpu['measured']} MB | {_off(cpu)} | {on_gpu} | {cpu['forecast_seconds']} s |"
        )
    return "\n".join([*lines, ""])


def _off(numbers: dict) -> str:
    return f"{numbers['forecast'] / numbers['measured'] - 1:+.0%}"
