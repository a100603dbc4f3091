"""Import the pack from its folder, as ComfyUI does, under a name of the caller's choice."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from environment import REPOSITORY


def load_pack(name: str = "pack") -> ModuleType:
    """Return the pack's root module, importable afterwards as ``name`` with its sub-packages.

    The repository's folder never goes on ``sys.path``: there ``nodes`` would hide ComfyUI's own.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    if spec is None or spec.loader is None:
        raise RuntimeError(f"the pack must be importable from its folder, got {REPOSITORY}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
