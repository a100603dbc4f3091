"""Run a benchmark in the development environment: ``python3 benchmarks/run.py NAME [ARGS]``.

Started by any Python, it makes the environment if need be and starts itself again inside it, where
the pack is importable as ``pack`` and ComfyUI's folder stands in ``COMFYUI_PATH``.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path.append(str(BENCHMARKS.parent / "scripts"))

import environment  # noqa: E402 - found by the line above


def main(arguments: list[str]) -> int:
    """Run ``benchmarks/<name>.py``'s ``main`` with the remaining arguments."""
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "run")
    if not arguments or arguments[0] not in names:
        given = arguments[0] if arguments else "none"
        print(f"the benchmark must be one of {', '.join(names)}, got {given}", file=sys.stderr)
        return 2
    ready = environment.prepare()
    if Path(sys.prefix).resolve() != ready.folder.resolve():
        command = [str(ready.python), str(BENCHMARKS / "run.py"), *arguments]
        return subprocess.run(command, env=ready.variables(), check=False).returncode
    from comfyui.pack_loader import load_pack

    load_pack("pack")
    return importlib.import_module(arguments[0]).main(arguments[1:]) or 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"{error}")
