"""Run a study in the development environment: ``python3 benchmarks/run.py STUDY [ARGS]``.

Any Python can start it. It creates the environment if there is none and starts itself again
inside it. There it prepares ComfyUI with temporary folders and loads the pack as ``pack`` before it
imports the study, so that the study's modules can import both at module level.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
# Studies are imported from the package ``benchmarks``. On the module path, the names of their
# folders would hide other modules.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != BENCHMARKS]
sys.path.append(str(BENCHMARKS.parent / "scripts"))

# ruff: noqa: E402 - these modules are found only after the line above
from comfyui.in_process import prepare_comfy
from comfyui.pack_loader import load_pack, load_package
from environment import prepare


def main(arguments: list[str]) -> int:
    """Run ``main`` of ``benchmarks/<study>/study.py`` with the remaining arguments."""
    names = sorted(path.parent.name for path in BENCHMARKS.glob("*/study.py"))
    if not arguments or arguments[0] not in names:
        given = arguments[0] if arguments else "none"
        print(f"the study must be one of {', '.join(names)}, got {given}", file=sys.stderr)
        return 2
    ready = prepare()
    if Path(sys.prefix).resolve() != ready.folder.resolve():
        command = [str(ready.python), str(BENCHMARKS / "run.py"), *arguments]
        return subprocess.run(command, env=ready.variables(), check=False).returncode
    with tempfile.TemporaryDirectory(prefix="pastiche-benchmark-") as folder:
        prepare_comfy(Path(folder))
        load_pack("pack")
        load_package("benchmarks", BENCHMARKS)
        study = importlib.import_module(f"benchmarks.{arguments[0]}.study")
        return study.main(arguments[1:]) or 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"{error}")
