"""Run the tests tier by tier and close with one summary, in the form that pytest has."""

from __future__ import annotations

import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from environment import REPOSITORY, Environment
from environment.browser_binary import ensure_browser

# Apart, because each needs its process to itself: ComfyUI fixes its device and folders on import,
# the browser's library keeps an event loop running.
TIERS = {
    "unit": ["tests", "--ignore=tests/comfy", "--ignore=tests/browser"],
    "comfy": ["tests/comfy"],
    "browser": ["tests/browser"],
}


@dataclass(frozen=True)
class TierResult:
    """What one tier reported; a tier that broke off counts as one error."""

    name: str
    exit_code: int
    seconds: float
    counts: dict[str, int]


def run_tests(environment: Environment, *, full: bool, tiers: list[str], extra: list[str]) -> int:
    """Run the tiers, print each one's time and the sum of all, return an exit code."""
    if "browser" in tiers:
        _prepare_browser()
    results = [_run_tier(environment, name, full=full, extra=extra) for name in tiers]
    print()
    print(f"environment  {environment.seconds:7.1f} s  (install and look-up, apart from the tests)")
    for result in results:
        print(f"{result.name:11s}  {result.seconds:7.1f} s  {_described(result.counts)}")
    total = {key: sum(r.counts[key] for r in results) for key in results[0].counts}
    seconds = sum(result.seconds for result in results)
    print(f" {_described(total)} in {seconds:.2f}s ".center(80, "="), flush=True)
    return next((result.exit_code for result in results if result.exit_code), 0)


def _prepare_browser() -> None:
    """Have a browser before the clock runs; without one the tier itself fails and says why."""
    try:
        ensure_browser()
    except RuntimeError as error:
        print(error, flush=True)


def _run_tier(environment: Environment, name: str, *, full: bool, extra: list[str]) -> TierResult:
    variables = environment.variables()
    print(f"\n--- {name} ".ljust(80, "-"), flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pastiche-test-") as temporary:
        report = Path(temporary) / "report.xml"
        command = [str(environment.python), "-m", "pytest", *TIERS[name]]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", "--durations=5", *extra]
        if not full:
            command += ["-m", "not full"]
        exit_code = subprocess.run(command, cwd=REPOSITORY, env=variables, check=False).returncode
        counts = _counts(report, exit_code)
    return TierResult(name, exit_code, time.monotonic() - started, counts)


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


def _described(counts: dict[str, int]) -> str:
    parts = [f"{counts[key]} {key}" for key in ("failed", "passed", "skipped", "errors")]
    return ", ".join(part for part in parts if part[0] != "0" or part.endswith("passed"))
