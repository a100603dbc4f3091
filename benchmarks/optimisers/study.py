"""Compare the optimisers on three trainings: ``python3 benchmarks/run.py optimisers``; resumable.

AdamW, SGD, Scaled SGD, Scaled AdamW and LoRA-RITE train with three learning rates each, a decade
apart. The problems are a plain LoRA, a half and a make on the toy base, and a matrix. The study
measures the held-out loss over steps and seconds, and the cost of preconditioning on the toy base
and at the widths of SDXL. The toy base computes in bf16. The results are written to
``benchmarks/results/optimisers.md`` and ``optimisers.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from environment import cache_folder
from pack.lora_ops import LowRank
from pack.nodes.trainer.denoiser import open_denoiser
from safetensors.torch import load_file
from torch import Tensor

from ..shared.cache import ResultCache, source_digest
from ..shared.toy_base import Setup, load_setup
from . import cost, matrix, wide
from .problems import PROBLEMS, RANK, ROWS, ProblemFactory
from .rates import MATRIX_RATES, MATRIX_STEPS, RATES
from .report import write_report

BENCHMARKS = Path(__file__).resolve().parents[1]
# Files whose code decides the results; a change of their code makes stored results invalid.
DECIDING = (
    "lora_ops/preconditioner.py",
    "lora_ops/lora_rite.py",
    "training/optimizers/factor_optimizer.py",
    "training/optimizers/lora_rite.py",
    "training/optimizers/scaled.py",
    "benchmarks/optimisers/problems.py",
    "benchmarks/optimisers/matrix.py",
)


def main(arguments: Sequence[str]) -> int:
    """Compute the results that are not in the cache, and write the report."""
    parser = argparse.ArgumentParser(prog="optimisers", description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=120, help="steps of a training on the toy base"
    )
    parser.add_argument(
        "--make-steps",
        type=int,
        default=60,
        help="steps of a make, which starts from trained halves",
    )
    parser.add_argument("--every", type=int, default=30, help="steps between held-out losses")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps per optimiser")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-again", action="store_true", help="measure stored timings again")
    parser.add_argument("--wide", action="store_true", help="time SDXL's layers and print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "optimisers.md")
    options = parser.parse_args(arguments)
    if options.wide:
        print(json.dumps(wide.measure(options.threads)))
        return 0
    study = Study(load_setup(options.threads), options)
    write_report(options.out, study.metadata(), study.result())
    return 0


class Study:
    """The trainings and timings of the study, each stored in the cache as soon as it exists."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup, self.base, self.options = setup, setup.base, options
        code = source_digest(BENCHMARKS.parent / name for name in DECIDING)
        self.cache = ResultCache(cache_folder() / "optimisers_study", [setup.base_digest, code])

    def metadata(self) -> dict:
        """Return the values that the results depend on."""
        metadata = self.setup.metadata
        return {
            "world": metadata["world"],
            "base": metadata["base"],
            "torch": torch.__version__,
            "threads": self.options.threads,
            "steps": f"{self.options.steps}, make {self.options.make_steps}",
            "rows per step": ROWS,
            "rank": RANK,
        }

    def result(self) -> dict:
        """Return the loss curves by problem, optimiser and rate, and the timings."""
        every, threads = self.options.every, self.options.threads
        lengths = dict.fromkeys(PROBLEMS, self.options.steps) | {"make": self.options.make_steps}
        curves: dict[str, dict] = {"matrix": {}}
        for optimizer, rates in MATRIX_RATES.items():
            curves["matrix"][optimizer] = {
                rate: self._stored(
                    ["matrix", optimizer, rate, MATRIX_STEPS, threads],
                    lambda o=optimizer, r=rate: matrix.error_curve(o, r, MATRIX_STEPS, 50),
                )
                for rate in rates
            }
        wide_steps = self._stored(
            ["wide", wide.SIDE, threads], lambda: wide.measure_in_new_process(threads)
        )
        with open_denoiser(self.base.model) as denoiser:
            factory = ProblemFactory(self.base, denoiser)
            for role in ("content", "style"):
                factory.halves[role] = self._half(factory, role)
            costs = {
                name: self._stored(
                    ["cost", name, self.options.rounds, threads],
                    lambda n=name: cost.measure(factory, n, tuple(RATES), self.options.rounds),
                )
                for name in PROBLEMS
            }
            for name in PROBLEMS:
                curves[name] = {
                    optimizer: {
                        rate: self._stored(
                            [name, optimizer, rate, lengths[name], every, threads],
                            lambda n=name, o=optimizer, r=rate: factory.loss_curve(
                                n, o, r, lengths[n], every
                            ),
                        )
                        for rate in rates
                    }
                    for optimizer, rates in RATES.items()
                }
        return {"courses": curves, "costs": costs, "wide": wide_steps}

    def _half(self, factory: ProblemFactory, role: str) -> dict[str, LowRank]:
        """Return a finished half, from the cache if it is stored there."""

        def train() -> dict[str, Tensor]:
            layers = factory.learn_half(role)
            tensors = {f"{name}/down": layer.down for name, layer in layers.items()}
            return tensors | {f"{name}/up": layer.up for name, layer in layers.items()}

        tensors = load_file(self.cache.tensor_file(["half of the", role], train, "half"))
        names = {key.rpartition("/")[0] for key in tensors}
        return {name: LowRank(tensors[f"{name}/down"], tensors[f"{name}/up"]) for name in names}

    def _stored(self, key: list, compute: Callable[[], Any]) -> Any:
        """Return the result of a key, from the cache if it is stored there."""
        name = key[0]

        def compute_and_print() -> Any:
            found = compute()
            print(*key, *(f"{loss:.4g}" for loss in found.get("losses", ())), flush=True)
            return found

        again = self.options.time_again and name in ("cost", "wide")
        return self.cache.get(key, compute_and_print, name, again=again)
