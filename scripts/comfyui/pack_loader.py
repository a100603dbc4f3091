"""Import the pack, or another package, from its folder under a chosen name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from environment import REPOSITORY


def load_pack(name: str = "pack") -> ModuleType:
    """Return the pack's root module, importable afterwards as ``name`` with its sub-packages."""
    return load_package(name, REPOSITORY)


def load_package(name: str, folder: Path) -> ModuleType:
    """Return the package in a folder, importable afterwards as ``name`` with its sub-packages.

    The repository's folder is not put on ``sys.path``, where its ``nodes`` would hide ComfyUI's.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{name} must be importable from its folder, got {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
