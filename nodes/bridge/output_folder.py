"""Locate the training runs in ComfyUI's output folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def runs_root() -> Path:
    """Return the folder of all runs, ``output/pastiche``."""
    return Path(folder_paths.get_output_directory()) / "pastiche"
