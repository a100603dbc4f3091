"""Run the demo, the tests and other development commands.

    python3 scripts/dev.py demo          train a style from one pair on the toy base, in the terminal
    python3 scripts/dev.py test          run the checks and tests (--full adds the slow ones)
    python3 scripts/dev.py comfy         start ComfyUI with the pack, the toy base and its examples
    python3 scripts/dev.py templates     write the templates and their graphs again
    python3 scripts/dev.py python ARGS   run the environment's Python

All commands need only Python 3.10 or newer and, for the first run, an internet connection. They
install the environment into the user's cache folder and reuse it afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from comfyui.server import PACK_FOLDER, ComfyServer, make_base_directory
from environment import REPOSITORY, Environment, cache_folder, prepare
from tiers import TIERS, RunOptions, default_workers, run_tests

SCRIPTS = REPOSITORY / "scripts"


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name and return an exit code."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo = verbs.add_parser("demo", help="from one before/after pair to a styled picture")
    demo.add_argument("--out", type=Path, default=Path("pastiche-demo"), help="folder to write")
    demo.add_argument("--seed", type=int, default=0, help="seed of the training")
    test = verbs.add_parser("test", help="run the tests; arguments after -- go to pytest")
    test.add_argument(
        "--full", action="store_true", help="also run tests marked full, and measure coverage"
    )
    test.add_argument("--tier", action="append", choices=TIERS, help="run only this tier")
    test.add_argument(
        "--workers", type=int, default=default_workers(), help="number of test processes"
    )
    test.add_argument("extra", nargs="*", help="arguments for pytest, after --")
    comfy = verbs.add_parser("comfy", help="start ComfyUI with the pack and the toy base")
    comfy.add_argument(
        "--port", type=int, default=None, help="port of the server; a free one if left out"
    )
    verbs.add_parser("templates", help="write the templates through ComfyUI's frontend")
    verbs.add_parser("python", help="run the environment's Python", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.verb != "python":
        parser.error(f"not understood: {' '.join(rest)}")

    ready = prepare()
    if options.verb == "test":
        run_options = RunOptions(ready, options.full, options.workers, options.extra)
        return run_tests(run_options, options.tier or list(TIERS))
    if options.verb == "demo":
        out = options.out.absolute()
        script = ["scripts/demo.py", str(_base_directory()), str(out), str(options.seed)]
        return _run_python(ready, script)
    if options.verb == "comfy":
        return _serve(ready, options.port)
    if options.verb == "templates":
        return _run_python(ready, ["-m", "templates.write"], SCRIPTS)
    return _run_python(ready, arguments[1:], folder=Path.cwd())


def _run_python(ready: Environment, arguments: list[str], folder: Path = REPOSITORY) -> int:
    command = [str(ready.python), *arguments]
    return subprocess.run(command, cwd=folder, env=ready.variables(), check=False).returncode


def _base_directory() -> Path:
    """Return the ComfyUI base directory of this checkout, with the pack mounted in it."""
    digest = hashlib.sha256(str(REPOSITORY).encode()).hexdigest()[:12]
    return make_base_directory(cache_folder() / f"base-{digest}")


def _serve(ready: Environment, port: int | None) -> int:
    """Run ComfyUI with the pack until the user stops it."""
    base_directory = _base_directory()
    placed = _run_python(ready, ["-m", "comfyui.toy_base", str(base_directory)], SCRIPTS)
    if placed != 0:
        return placed
    server = ComfyServer(
        ready.python, ready.comfyui, base_directory, variables=ready.variables(), port=port
    )
    with server:
        nodes = [name for name in server.object_info() if name.startswith("Pastiche")]
        if not nodes:
            raise RuntimeError("ComfyUI must show the pack's nodes, got none: see its log above")
        print(f"\n{len(nodes)} Pastiche nodes are ready at {server.url}")
        print(f"Open it in a browser; the graphs are under Templates, {PACK_FOLDER}.")
        print(f"Pictures and LoRAs are written to {base_directory / 'output'}")
        print("Ctrl-C stops the server.", flush=True)
        assert server.process is not None
        return server.process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
