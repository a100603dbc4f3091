"""The optimisers on three trainings: ``python3 benchmarks/run.py optimisers``; resumable.

AdamW, SGD, Scaled SGD, Scaled AdamW and LoRA-RITE, each with three learning rates a decade apart,
on a plain LoRA, a half and a make on the toy base and on a matrix problem: held-out loss against
steps and seconds, and what preconditioning costs, on the toy base and at the widths of SDXL. The
toy base computes in bf16. Writes ``benchmarks/results/optimisers.md`` and ``optimisers.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
RATES = {
    "AdamW": (1e-4, 1e-3, 1e-2),
    "SGD": (1.0, 10.0, 100.0),
    "Scaled SGD": (1.0, 10.0, 100.0),
    "Scaled AdamW": (1e-4, 1e-3, 1e-2),
    "LoRA-RITE": (1e-4, 1e-3, 1e-2),
}
MATRIX_RATES = {
    "AdamW": (1e-3, 1e-2, 1e-1),
    "SGD": (1e-2, 1e-1, 1.0),
    "Scaled SGD": (1e-2, 1e-1, 1.0),
    "Scaled AdamW": (1e-3, 1e-2, 1e-1),
    "LoRA-RITE": (1e-4, 1e-3, 1e-2),
}
MATRIX_STEPS = 400
DECIDING = (
    "lora_ops/preconditioner.py",
    "lora_ops/lora_rite.py",
    "training/optimizers/factor_optimizer.py",
    "training/optimizers/lora_rite.py",
    "training/optimizers/scaled.py",
    "benchmarks/optimisers_study/problems.py",
    "benchmarks/optimisers_study/matrix.py",
)


def main(arguments: Sequence[str]) -> int:
    """Run what is not yet in the cache and write the report."""
    parser = argparse.ArgumentParser(prog="optimisers", description=__doc__)
    parser.add_argument("--steps", type=int, default=120, help="of a training on the toy base")
    parser.add_argument("--make-steps", type=int, default=60, help="of a make, which starts learnt")
    parser.add_argument("--every", type=int, default=30, help="steps between held-out losses")
    parser.add_argument("--rounds", type=int, default=15, help="steps timed per optimiser")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-again", action="store_true", help="measure stored timings anew")
    parser.add_argument("--wide", action="store_true", help="time SDXL's layers, print JSON")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "optimisers.md")
    options = parser.parse_args(arguments)
    if options.wide:
        from optimisers_study.wide import measure

        print(json.dumps(measure(options.threads)))
        return 0
    import pair

    study = Study(pair.Study.open(options.steps, options.threads), options)
    from optimisers_study.report import write_report

    write_report(options.out, study.facts(), study.result())
    return 0


class Study:
    """The trainings and timings of the study, each kept in the cache as soon as it is made."""

    def __init__(self, opened: Any, options: argparse.Namespace) -> None:
        from environment import cache_folder

        self.base, self.base_digest, self.options = opened.base, opened.base_digest, options
        self.cache = cache_folder() / "optimisers_study"
        self.cache.mkdir(exist_ok=True)
        code = b"".join((BENCHMARKS.parent / name).read_bytes() for name in DECIDING)
        self.code = hashlib.sha256(code).hexdigest()[:16]

    def facts(self) -> dict:
        """What the result rests on."""
        import torch
        from optimisers_study import problems
        from toyworld.world import world_hash

        return {
            "world": world_hash(),
            "base": self.base_digest,
            "torch": torch.__version__,
            "threads": self.options.threads,
            "steps": f"{self.options.steps}, make {self.options.make_steps}",
            "rows per step": problems.ROWS,
            "rank": problems.RANK,
        }

    def result(self) -> dict:
        """Courses by problem, optimiser and rate, and the timings."""
        from optimisers_study import matrix
        from optimisers_study.cost import measure
        from optimisers_study.problems import PROBLEMS, Workshop
        from optimisers_study.wide import SIDE, measured
        from pack.nodes.trainer.denoiser import open_denoiser

        every, threads = self.options.every, self.options.threads
        lengths = dict.fromkeys(PROBLEMS, self.options.steps) | {"make": self.options.make_steps}
        courses: dict[str, dict] = {"matrix": {}}
        for optimizer, rates in MATRIX_RATES.items():
            courses["matrix"][optimizer] = {
                rate: self._kept(
                    ["matrix", optimizer, rate, MATRIX_STEPS, threads],
                    lambda o=optimizer, r=rate: matrix.course(o, r, MATRIX_STEPS, 50),
                )
                for rate in rates
            }
        wide = self._kept(["wide", SIDE, threads], lambda: measured(threads))
        with open_denoiser(self.base.model) as denoiser:
            workshop = Workshop(self.base, denoiser)
            for role in ("content", "style"):
                workshop.halves[role] = self._half(workshop, role)
            costs = {
                name: self._kept(
                    ["cost", name, self.options.rounds, threads],
                    lambda n=name: measure(workshop, n, tuple(RATES), self.options.rounds),
                )
                for name in PROBLEMS
            }
            for name in PROBLEMS:
                courses[name] = {
                    optimizer: {
                        rate: self._kept(
                            [name, optimizer, rate, lengths[name], every, threads],
                            lambda n=name, o=optimizer, r=rate: workshop.course(
                                n, o, r, lengths[n], every
                            ),
                        )
                        for rate in rates
                    }
                    for optimizer, rates in RATES.items()
                }
        return {"courses": courses, "costs": costs, "wide": wide}

    def _half(self, workshop: Any, role: str) -> dict:
        """A finished half, from the cache where it was learnt before."""
        from pack.lora_ops import LowRank
        from safetensors.torch import load_file, save_file

        path = self._path(["half of the", role]).with_suffix(".safetensors")
        if not path.exists():
            layers = workshop.learn_half(role)
            tensors = {f"{name}/down": layer.down for name, layer in layers.items()}
            tensors |= {f"{name}/up": layer.up for name, layer in layers.items()}
            temporary = path.with_suffix(".part")
            save_file(tensors, temporary)
            temporary.replace(path)
        tensors = load_file(path)
        names = {key.rpartition("/")[0] for key in tensors}
        return {name: LowRank(tensors[f"{name}/down"], tensors[f"{name}/up"]) for name in names}

    def _path(self, place: list) -> Path:
        """Where something lies that follows from ``place`` and what the study rests on."""
        rests = json.dumps([self.base_digest, self.code, *place])
        digest = hashlib.sha256(rests.encode()).hexdigest()[:16]
        return self.cache / f"{place[0].split()[0]}-{digest}.json"

    def _kept(self, place: list, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, from the cache where it was made before."""
        path = self._path(place)
        again = self.options.time_again and place[0] in ("cost", "wide")
        if again or not path.exists():
            made = make()
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(made), encoding="utf-8")
            temporary.replace(path)
            ends = [f"{loss:.4g}" for loss in made.get("losses", ())]
            print(*place, " ".join(ends), flush=True)
        return json.loads(path.read_text(encoding="utf-8"))
