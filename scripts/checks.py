"""Run ruff, its formatter, pyright and TypeScript, and count each of them as one check."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from environment import REPOSITORY, Environment


@dataclass(frozen=True)
class Check:
    """A command that fails if it finds a problem.

    Args:
        name: Name of the check in the summary.
        command: Command line, which is run in the repository.
        repair: Command that repairs problems automatically; "" if there is none.
    """

    name: str
    command: list[str]
    repair: str = ""


def checks(environment: Environment) -> list[Check]:
    """Return all checks, run with the tools of the environment."""
    ruff = [str(environment.python), "-m", "ruff"]
    pyright = environment.node_command("pyright", "index.js")
    typescript = environment.node_command("typescript", "bin/tsc")
    ruff_command = "python3 scripts/dev.py python -m ruff"
    return [
        Check("ruff check", [*ruff, "check", "--no-cache", "."], f"{ruff_command} check --fix ."),
        Check(
            "ruff format",
            [*ruff, "format", "--no-cache", "--check", "."],
            f"{ruff_command} format .",
        ),
        Check("pyright", [*pyright, "--pythonpath", str(environment.python)]),
        Check("typescript", [*typescript, "-p", "scripts/typescript"]),
    ]


def run_checks(environment: Environment) -> dict[str, int]:
    """Run every check and return how many failed and passed."""
    # Pyright reads the module path from the interpreter and so finds ComfyUI's modules for nodes/.
    path = {"PYTHONPATH": os.fspath(environment.comfyui)}
    return run(checks(environment), {**environment.variables(), **path})


def run(found: Sequence[Check], variables: Mapping[str, str]) -> dict[str, int]:
    """Run checks, print the output of failing ones, and return how many failed and passed."""
    failed = 0
    for check in found:
        started = time.monotonic()
        finished = subprocess.run(
            check.command,
            cwd=REPOSITORY,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        passed = finished.returncode == 0
        seconds = time.monotonic() - started
        print(f"{check.name:12s} {'passed' if passed else 'FAILED'} in {seconds:.1f} s", flush=True)
        if not passed:
            failed += 1
            print(finished.stdout.rstrip())
            if check.repair:
                print(f"To repair it automatically: {check.repair}", flush=True)
    return {"failed": failed, "passed": len(found) - failed, "skipped": 0, "errors": 0}
