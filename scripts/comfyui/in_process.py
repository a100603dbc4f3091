"""Make ComfyUI importable in this process without touching its folder."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def prepare_comfy(base_directory: Path) -> None:
    """Put ``COMFYUI_PATH`` first on ``sys.path`` and let ComfyUI write only below a base directory.

    This must run before any other import of ComfyUI, which fixes its device and folders on import.
    """
    if "folder_paths" in sys.modules:
        raise RuntimeError("ComfyUI must not have been imported before, got folder_paths imported")
    if "COMFYUI_PATH" not in os.environ:
        raise RuntimeError(
            "COMFYUI_PATH must name ComfyUI's folder, got nothing: start with scripts/dev.py"
        )
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    importlib.import_module("comfy.options")
    args = importlib.import_module("comfy.cli_args").args
    torch = importlib.import_module("torch")
    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
    args.disable_api_nodes = True
    args.database_url = "sqlite:///:memory:"
    args.base_directory = str(base_directory)
    for folder in ("custom_nodes", "input", "output", "temp", "models/checkpoints"):
        (base_directory / folder).mkdir(parents=True, exist_ok=True)
