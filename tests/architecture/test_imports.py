"""Rule 0 and the arrows: __init__ -> nodes -> training -> lora_ops, and nothing upward."""

import ast
from pathlib import Path

import pytest

COMFY = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "server",
}
OWN = {"lora_ops", "training", "nodes", "scripts", "tests", "benchmarks"}
MAY_IMPORT = {
    "lora_ops": {"lora_ops"},
    "training": {"lora_ops", "training"},
    "nodes": {"lora_ops", "training", "nodes"},
    "": {"nodes"},
}


def imports(path: Path, tree: ast.Module) -> list[tuple[int, str, str]]:
    """Return (line, kind, dotted name); kind "own" holds paths from the repository's root.

    ``from .. import x`` may name a module or an attribute: it is listed as the module ``..x``.
    """
    package = path.parent.parts
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, "absolute", alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, "absolute", node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            assert node.level - 1 <= len(package), f"{path}:{node.lineno} leaves the repository"
            base = package[: len(package) - (node.level - 1)]
            if node.module:
                found.append((node.lineno, "own", ".".join((*base, node.module))))
            else:
                found += [(node.lineno, "own", ".".join((*base, a.name))) for a in node.names]
    return found


def broken_rules(path: Path, tree: ast.Module) -> list[str]:
    """Say which imports of one module go against the rules."""
    layer = path.parts[0] if len(path.parts) > 1 else ""
    in_bridge = path.parts[:2] == ("nodes", "bridge")
    problems = []
    for line, kind, name in imports(path, tree):
        parts = name.split(".")
        where = f"{path.as_posix()}:{line} imports {name}"
        if kind == "absolute":
            if parts[0] in OWN:
                problems.append(f"{where}: own modules are imported relatively")
            if parts[0] in COMFY and layer != "nodes" and not _for_types_only(tree, line):
                problems.append(f"{where}: only files under nodes/ may import ComfyUI")
            continue
        if parts[0] not in MAY_IMPORT[layer]:
            problems.append(f"{where}: {layer or 'the root'} may not import {parts[0]}")
        if in_bridge and parts[0] == "nodes" and parts[1:2] != ["bridge"]:
            problems.append(f"{where}: a bridge file imports no other folder of nodes/")
    return problems


def _for_types_only(tree: ast.Module, line: int) -> bool:
    guards = [
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ]
    return any(guard.lineno < line <= (guard.end_lineno or 0) for guard in guards)


def test_imports_follow_the_arrows(trees: dict[Path, ast.Module]):
    problems = [problem for path, tree in trees.items() for problem in broken_rules(path, tree)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_ops/a.py", "import comfy.utils"),
        ("lora_ops/a.py", "def f():\n    from comfy_api.latest import io"),
        ("lora_ops/a.py", "from ..training import loop"),
        ("lora_ops/a.py", "from .. import training"),
        ("lora_ops/deep/a.py", "from ... import nodes"),
        ("training/a.py", "from ..nodes.bridge import denoiser"),
        ("training/recipes/a.py", "from lora_ops import LowRank"),
        ("nodes/bridge/a.py", "from ..train import Node"),
        ("nodes/bridge/a.py", "from .. import train"),
        ("__init__.py", "import comfy_api"),
        ("__init__.py", "from .training import loop"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str):
    assert broken_rules(Path(path), ast.parse(source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_ops/deep/a.py", "from ..factors import LowRank"),
        ("training/recipes/a.py", "from ...lora_ops.factors import LowRank"),
        ("nodes/a.py", "import comfy.utils\nfrom .bridge.denoiser import Denoiser"),
        ("nodes/bridge/a.py", "from . import denoiser\nfrom ...training import loop"),
        ("nodes/__init__.py", "from . import train"),
        ("__init__.py", "if TYPE_CHECKING:\n    from comfy_api.latest import ComfyExtension"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str):
    assert not broken_rules(Path(path), ast.parse(source))


def test_the_root_module_imports_without_comfyui(trees: dict[Path, ast.Module]):
    # Other tests of the process may have ComfyUI: only what runs on import counts.
    tree = trees[Path("__init__.py")]
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or node.names[0].name for node in at_import]
    assert sorted(modules) == ["__future__", "typing"]
