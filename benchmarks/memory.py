"""Forecast against measured peak memory: ``python3 benchmarks/run.py memory``.

The toy base, and SD1.5 and SDXL in their real widths with random weights, with and without
checkpointing. Every measurement has a process of its own: two steps of training, and the highest
resident set above what the process held before the model was made; on a GPU the highest that torch
has allocated. Every case is kept in ``benchmarks/results/memory.json`` as soon as it is measured,
``--again`` measures it anew; the table is ``memory.md`` beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
MB = 1024**2
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
}
NETWORKS = {
    "SD1.5": {
        **_UNET,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
    },
    "SDXL": {
        **_UNET,
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}


@dataclass(frozen=True)
class Case:
    """One measurement: the base, its weights' dtype, the latent's side and the rows per step."""

    base: str
    dtype: str
    size: int
    rows: int
    checkpointing: bool

    @property
    def label(self) -> str:
        """What the table says of it."""
        return f"{self.base}, {self.dtype}, {8 * self.size} px, batch {self.rows}"


CASES = [
    Case(base, dtype, size, rows, checkpointing)
    for base, dtype, size, rows in (
        ("toy base", "float32", 8, 16),
        ("SD1.5", "float32", 32, 2),
        ("SDXL", "bfloat16", 32, 1),
        ("SDXL", "bfloat16", 64, 1),
    )
    for checkpointing in (False, True)
]


def main(arguments: Sequence[str]) -> int:
    """Measure every case in a process of its own and write the report."""
    parser = argparse.ArgumentParser(prog="memory", description=__doc__)
    parser.add_argument("--case", type=int, help="measure one case in this process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--again", action="store_true", help="measure stored cases anew")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "memory.md")
    options = parser.parse_args(arguments)
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case], options.device)))
        return 0
    import torch

    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    facts = {"torch": torch.__version__, "machine": platform.machine()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
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
            text = json.dumps({**facts, "cases": found}, indent=1) + "\n"
            stored.write_text(text, encoding="utf-8")
    options.out.write_text(report({**facts, "cases": found}), encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))
    return 0


def _in_process(number: int, device: str) -> dict:
    """One case's numbers, from a process that has held nothing else."""
    command = [sys.executable, str(BENCHMARKS / "run.py"), "memory", "--case", str(number)]
    # Freed memory goes back at once, so that the resident set is what the run holds.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MB), "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(
        [*command, "--device", device],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def measure(case: Case, device: str) -> dict:
    """Forecast one case and train two steps of it; all numbers in MB."""
    import time

    sys.path.append(str(BENCHMARKS.parent / "scripts"))
    from comfy_in_process import prepare_comfy

    with tempfile.TemporaryDirectory(prefix="pastiche-memory-") as folder:
        prepare_comfy(Path(folder))
        import comfy.cli_args

        comfy.cli_args.args.cpu = device == "cpu"
        import torch
        from pack.nodes.trainer.base import Base
        from pack.nodes.trainer.denoiser import open_denoiser
        from pack.nodes.trainer.rehearsal import Rehearsal
        from pack.nodes.trainer.target_layers import target_layers, training_sites
        from pack.training import TrainingConfig, TrainingSettings, train
        from pack.training.recipes import Single

        _warm_up()
        before = _resident()
        model = _base(case)
        settings = TrainingSettings(
            precision="bf16" if case.dtype == "bfloat16" else "fp32",
            checkpointing=case.checkpointing,
        )
        recipe = Single(_examples(model, case), batch_size=case.rows)
        config = TrainingConfig(steps=2, rank=16, learning_rate=1e-4, seed=0)
        started = time.process_time()
        base = Base(model, None, None)
        layers = target_layers(base.layers, settings.targets)
        need = Rehearsal(base, layers, None, recipe).need(config, settings)
        seconds = time.process_time() - started
        _forget_peak(device)
        with open_denoiser(model, settings.precision, case.checkpointing) as denoiser:
            sites = training_sites(denoiser.patcher, settings.targets)
            train(denoiser, sites, recipe, config)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak() - before
    return {
        "forecast": round(need.total / MB),
        "weights": round(need.weights / MB),
        "learnt": round(need.learnt / MB),
        "activations": round(need.activations / MB),
        "measured": round(peak / MB),
        "forecast_seconds": round(seconds, 1),
    }


def _warm_up() -> None:
    """Let torch set up what it keeps for good: threads, kernels, autograd."""
    import torch

    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    convolved = torch.nn.functional.conv2d(x, torch.randn(8, 8, 3, 3))
    torch.nn.functional.linear(convolved, torch.randn(32, 14)).square().sum().backward()


def _base(case: Case):
    """The case's base as ComfyUI loads it, with random weights where it is not the toy one."""
    import comfy.ops
    import comfy.sd
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    dtype = getattr(torch, case.dtype)
    if case.base == "toy base":
        from toy_base import toy_checkpoint

        return comfy.sd.load_diffusion_model(str(toy_checkpoint()), model_options={"dtype": dtype})
    with torch.device("meta"):
        layout = UNetModel(
            **NETWORKS[case.base], operations=comfy.ops.disable_weight_init, dtype=dtype
        )
    state = {}
    for key, value in layout.state_dict().items():
        if value.ndim < 2:
            fill = 0.0 if key.endswith("bias") else 1.0
            state[key] = torch.full(value.shape, fill, dtype=dtype)
        else:
            spread = 1 / math.sqrt(math.prod(value.shape[1:]))
            state[key] = torch.empty(value.shape, dtype=dtype).uniform_(-spread, spread)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})


def _examples(model, case: Case) -> list:
    """Random pictures and captions of the widths that the base takes."""
    import torch
    from pack.nodes.text.training_cond import training_cond
    from pack.training import Example

    width = model.model.model_config.unet_config["context_dim"]
    extras = {"pooled_output": torch.randn(1, 1280)} if case.base == "SDXL" else {}
    found = []
    for _ in range(case.rows):
        channels = model.model.latent_format.latent_channels
        latent = torch.randn(channels, case.size, case.size)
        caption = [[torch.randn(1, 77, width), extras]]
        found.append(Example(latent, training_cond(model, caption, latent)))
    return found


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Linux must tell {name} of a process, got none")


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _forget_peak(device: str) -> None:
    """Start the highest resident set anew; what making the model took is no part of training."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def report(facts: dict) -> str:
    """The table as markdown."""
    lines = [
        "# Memory: forecast against measured peak",
        "",
        "What the pre-flight says before step 1, and the peak of two steps of training: of the",
        "resident set above what the process held before the model was made (freed memory given",
        "back at once), and of torch's allocations on a GPU. Rank 16, attention layers, AdamW;",
        f"the weights are random but for the toy base's. torch {facts['torch']}, "
        f"{facts['machine']}.",
        "",
        "| base | checkpointing | forecast | weights / learnt / step | CPU peak | off by "
        "| GPU peak | off by | forecast takes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, by_device in facts["cases"].items():
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
