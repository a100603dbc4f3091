"""Run the checks and the tests tier by tier, and print one summary in the form of pytest."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checks import run_checks
from environment import REPOSITORY, Environment
from environment.browser_binary import ensure_browser

CHECKS = "checks"
# These tiers need separate processes: ComfyUI fixes its device and folders on import, and the
# library that drives the browser keeps an event loop running.
PYTEST_TIERS = {
    "unit": ["tests", "--ignore=tests/comfy", "--ignore=tests/browser"],
    "comfy": ["tests/comfy"],
    "browser": ["tests/browser"],
}
TIERS = (CHECKS, *PYTEST_TIERS)
MAX_WORKERS = 4  # each loads ComfyUI and its own tiny models, which takes about 2 GB


@dataclass(frozen=True)
class TierResult:
    """The outcome of one tier; a tier that did not finish counts as one error."""

    name: str
    exit_code: int
    seconds: float
    counts: dict[str, int]


@dataclass(frozen=True)
class RunOptions:
    """Options of a run of the tests.

    Args:
        environment: Environment that provides the interpreter and ComfyUI.
        full: Whether tests marked ``full`` run too and coverage is measured.
        workers: Number of processes that share a tier's tests.
        extra: Arguments for pytest.
    """

    environment: Environment
    full: bool
    workers: int
    extra: list[str]


def default_workers() -> int:
    """Return one worker for each processor, limited by the memory that a worker needs."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def run_tests(options: RunOptions, tiers: list[str]) -> int:
    """Run the tiers, print the time of each and the total counts, and return an exit code."""
    if "browser" in tiers:
        _prepare_browser()
    with tempfile.TemporaryDirectory(prefix="pastiche-test-") as temporary:
        results = [_run_tier(options, name, Path(temporary)) for name in tiers]
        if options.full:
            _report_coverage(options.environment, Path(temporary))
    print()
    seconds = options.environment.seconds
    print(f"environment  {seconds:7.1f} s  (install and look-up, not part of the tests)")
    for result in results:
        print(f"{result.name:11s}  {result.seconds:7.1f} s  {_summary(result.counts)}")
    total = {key: sum(r.counts[key] for r in results) for key in results[0].counts}
    seconds = sum(result.seconds for result in results)
    print(f" {_summary(total)} in {seconds:.2f}s ".center(80, "="), flush=True)
    return next((result.exit_code for result in results if result.exit_code), 0)


def _prepare_browser() -> None:
    """Install a browser before the tests are timed; if that fails, the tier fails with the reason."""
    try:
        ensure_browser()
    except RuntimeError as error:
        print(error, flush=True)


def _run_tier(options: RunOptions, name: str, temporary: Path) -> TierResult:
    print(f"\n--- {name} ".ljust(80, "-"), flush=True)
    started = time.monotonic()
    if name == CHECKS:
        counts = run_checks(options.environment)
        exit_code = 1 if counts["failed"] else 0
    else:
        exit_code, counts = _run_pytest(options, name, temporary)
    return TierResult(name, exit_code, time.monotonic() - started, counts)


def _run_pytest(options: RunOptions, name: str, temporary: Path) -> tuple[int, dict[str, int]]:
    report = temporary / f"{name}.xml"
    command = [str(options.environment.python)]
    if options.full:
        command += ["-m", "coverage", "run"]
    command += ["-m", "pytest", *PYTEST_TIERS[name]]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", "--durations=10"]
    if options.workers > 1:
        command += ["--numprocesses", str(options.workers), "--dist", "worksteal"]
    command += options.extra
    if not options.full:
        command += ["-m", "not full"]
    variables = _variables(options, temporary)
    exit_code = subprocess.run(command, cwd=REPOSITORY, env=variables, check=False).returncode
    return exit_code, _counts(report, exit_code)


def _variables(options: RunOptions, temporary: Path) -> Mapping[str, str]:
    """Return the environment variables of a tier; its workers share the processors evenly."""
    variables = options.environment.variables()
    if options.workers > 1:
        threads = max(1, (os.cpu_count() or 1) // options.workers)
        variables.setdefault("OMP_NUM_THREADS", str(threads))
    if options.full:
        variables["COVERAGE_FILE"] = str(temporary / "coverage")
    return variables


def _counts(report: Path, exit_code: int) -> dict[str, int]:
    if not report.is_file():
        return {"failed": 0, "passed": 0, "skipped": 0, "errors": 1}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise RuntimeError("pytest's report must hold a test suite, got none")
    tests, failed, errors, skipped = (
        int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
    )
    if exit_code not in (0, 1) and not errors:
        errors, tests = 1, tests + 1
    passed = tests - failed - errors - skipped
    return {"failed": failed, "passed": passed, "skipped": skipped, "errors": errors}


def _summary(counts: dict[str, int]) -> str:
    parts = [f"{counts[key]} {key}" for key in ("failed", "passed", "skipped", "errors")]
    return ", ".join(part for part in parts if part[0] != "0" or part.endswith("passed"))


def _report_coverage(environment: Environment, temporary: Path) -> None:
    """Print the coverage of the pack, and every file that has uncovered lines."""
    print("\n--- coverage ".ljust(80, "-"), flush=True)
    variables = {**environment.variables(), "COVERAGE_FILE": str(temporary / "coverage")}
    coverage = [str(environment.python), "-m", "coverage"]
    for arguments in (["combine", "--quiet"], ["report", "--skip-covered", "--sort=cover"]):
        subprocess.run([*coverage, *arguments], cwd=REPOSITORY, env=variables, check=False)
