"""Find or install a Chromium-based browser for the browser tests.

The library that drives the browser never downloads one here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .environment import install_debian_packages

COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
WINDOWS = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")


def find_browser() -> Path | None:
    """Return an installed Chromium-based browser; None if there is none."""
    for command in COMMANDS:
        found = shutil.which(command)
        if found:
            return Path(found)
    folders = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)")]
    candidates = [Path(application) for application in APPLICATIONS]
    candidates += [Path(folder) / tail for folder in folders if folder for tail in WINDOWS]
    return next((path for path in candidates if path.is_file()), None)


def ensure_browser() -> Path:
    """Return a browser; install Debian's ``chromium`` if none is found and this process may."""
    browser = find_browser()
    if browser is None:
        print("Installing chromium for the browser tests ...", flush=True)
        if install_debian_packages("chromium", "fonts-dejavu-core"):
            browser = find_browser()
    if browser is None:
        raise RuntimeError(
            "the browser tests need Chromium, Chrome or Edge and found none: "
            "install one of them and run the same command again"
        )
    return browser
