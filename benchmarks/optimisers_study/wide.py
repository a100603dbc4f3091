"""A step of every optimiser over the layers of SDXL, beside one forward and backward.

``python3 benchmarks/run.py optimisers --wide`` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

RUN = Path(__file__).resolve().parents[1] / "run.py"
RANK, SIDE, REPEATS = 64, 64, 5


def measured(threads: int) -> dict:
    """Run the measurement in a process of its own, which gives its memory back."""
    command = [sys.executable, str(RUN), "optimisers", "--wide", "--threads", str(threads)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(threads: int) -> dict:
    """Seconds of a forward and backward of one row, and of every optimiser's step alone.

    The base has SDXL's real widths and random weights, the row 512 pixels a side.
    """
    import torch
    from comfy_in_process import prepare_comfy

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="pastiche-optimisers-") as folder:
        prepare_comfy(Path(folder))
        import memory
        import optimisers
        from pack.nodes.trainer.denoiser import open_denoiser
        from pack.nodes.trainer.target_layers import training_sites
        from pack.training import Session, TrainingConfig
        from pack.training.loop import take_step
        from pack.training.optimizers.by_name import make_optimizer
        from pack.training.recipes import Single

        case, small = (memory.Case("SDXL", "bfloat16", side, 1, False) for side in (SIDE, 8))
        model = memory._base(case)
        recipes = [Single(memory._examples(model, one)) for one in (small, case)]
        config = TrainingConfig(9, RANK, 1e-6, 0, optimizer="SGD", weight_decay=0.0)
        with open_denoiser(model, "bf16") as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            session = Session(denoiser, sites, recipes[0], config)
            with session.gates.attached():
                for recipe in recipes:  # the small one warms up
                    started = time.perf_counter()
                    take_step(session, recipe)
                    passes = time.perf_counter() - started
        found = {}
        for part in session.parameters.values():
            part.grad = torch.randn_like(part) * 1e-4
            with torch.no_grad():
                part.add_(torch.randn_like(part) * 1e-2)  # no factor is singular
        for name in optimisers.RATES:
            fields = {"optimizer": name, "weight_decay": 0.0}
            config = TrainingConfig(9, RANK, 1e-6, 0, **fields)
            stepper = make_optimizer(session.adapters.values(), config)
            stepper.step()
            laps = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                stepper.step()
                laps.append(time.perf_counter() - started)
            found[name] = median(laps)
            del stepper
    learnt = sum(part.numel() for part in session.parameters.values())
    return {
        "layers": len(sites),
        "rank": RANK,
        "numbers": learnt,
        "pixels": 8 * SIDE,
        "passes": passes,
        "optimizers": found,
    }
