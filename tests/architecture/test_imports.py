"""Which folder may import which, and that ComfyUI is imported under `nodes/` alone."""

import ast
from pathlib import Path

import pytest
from module_graph import Import, circles, imports, module_imports

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

MATHEMATICS = {"lora_ops", "lora_ops/parametrizations"}
TRAINING = {
    "training",
    "training/families",
    "training/files",
    "training/optimizers",
    "training/recipes",
}
LOWER = MATHEMATICS | TRAINING | {"training/runs"}
BRIDGE = {"nodes/bridge"}
MATERIAL = BRIDGE | {"nodes/text", "nodes/pictures", "nodes/lora"}
TRAINER = MATERIAL | {"nodes/trainer"}

ALLOWED = {
    "": {"nodes"},
    "lora_ops": MATHEMATICS,
    "lora_ops/parametrizations": MATHEMATICS,
    "training": MATHEMATICS | TRAINING,
    "training/recipes": MATHEMATICS | {"training"},
    "training/optimizers": MATHEMATICS | {"training"},
    "training/families": set(),
    "training/files": MATHEMATICS | {"training", "training/families"},
    "training/runs": MATHEMATICS | {"training", "training/files"},
    "nodes/bridge": LOWER,
    "nodes/text": LOWER | BRIDGE,
    "nodes/pictures": LOWER | BRIDGE,
    "nodes/lora": LOWER | BRIDGE,
    "nodes/trainer": LOWER | MATERIAL,
    "nodes/guidance": LOWER | MATERIAL,
    "nodes/regions/layout": LOWER | BRIDGE | {"nodes/pictures"},
    "nodes/regions/sampling": LOWER | MATERIAL | {"nodes/regions/layout"},
    "nodes/regions": LOWER | BRIDGE | {"nodes/regions/layout", "nodes/regions/sampling"},
    "nodes/pair": LOWER | TRAINER,
    "nodes/plain": LOWER | TRAINER,
    "nodes/concepts": LOWER | TRAINER,
    "nodes/break_for_make": LOWER | TRAINER,
    "nodes/fusion": LOWER | MATERIAL | {"nodes/concepts"},
    "nodes": {
        "nodes/break_for_make",
        "nodes/concepts",
        "nodes/fusion",
        "nodes/guidance",
        "nodes/lora",
        "nodes/pair",
        "nodes/pictures",
        "nodes/plain",
        "nodes/regions",
        "nodes/trainer",
    },
}
"""The folders that the files of a folder may import, besides their own."""

LARGEST_SHARE = 0.2  # of the lines of nodes/, for any folder of it
LARGEST_BRIDGE = 1200  # lines


def folder_of(path: Path) -> str:
    return "" if path.parent == Path() else path.parent.as_posix()


def target_folder(found: Import, folders: set[str]) -> str:
    """Return the folder that an import of the pack's own leads to."""
    parts = found.name.split(".")
    while len(parts) > 1 and "/".join(parts) not in folders:
        parts.pop()
    return "/".join(parts)


def broken_rules(path: Path, tree: ast.Module, folders: set[str]) -> list[str]:
    """Say which imports of one module go against the rules."""
    here = folder_of(path)
    problems = []
    for found in imports(path, tree):
        where = f"{path.as_posix()}:{found.line} imports {found.name}"
        top = found.name.split(".")[0]
        if found.own:
            target = target_folder(found, folders)
            if target != here and target not in ALLOWED[here]:
                problems.append(f"{where}: {here or 'the root'} may not import {target}")
        elif top in OWN:
            problems.append(f"{where}: own modules are imported relatively")
        elif top in COMFY and not here.startswith("nodes") and not found.types_only:
            problems.append(f"{where}: only files under nodes/ may import ComfyUI")
    return problems


@pytest.fixture(scope="module")
def folders(trees: dict[Path, ast.Module]) -> set[str]:
    return {folder_of(path) for path in trees}


def test_every_folder_has_its_rule(folders: set[str]):
    assert folders == set(ALLOWED)


def test_folders_import_only_what_they_may(trees: dict[Path, ast.Module], folders: set[str]):
    problems = [
        problem for path, tree in trees.items() for problem in broken_rules(path, tree, folders)
    ]
    assert not problems, "\n".join(problems)


def test_folders_of_nodes_import_in_one_direction():
    nodes = {folder for folder in ALLOWED if folder.startswith("nodes")}
    arrows = {folder: ALLOWED[folder] & nodes - {folder} for folder in nodes}
    assert circles(arrows) == []


def test_no_modules_import_each_other_in_a_circle(repository: Path):
    # tests/architecture/test_tool_imports.py does the same for benchmarks/ and scripts/.
    assert circles(module_imports(repository, ("lora_ops", "training", "nodes", "tests"))) == []


def test_every_file_of_bridge_is_about_comfyui(trees: dict[Path, ast.Module]):
    bridge = {path: tree for path, tree in trees.items() if path.parent == Path("nodes/bridge")}
    touching = {
        path
        for path, tree in bridge.items()
        if any(not found.own and found.name.split(".")[0] in COMFY for found in imports(path, tree))
    }
    problems = []
    for path in bridge.keys() - touching:
        if path.name == "__init__.py":
            continue
        module = ".".join(path.with_suffix("").parts)
        users = {
            user
            for user, tree in trees.items()
            for found in imports(user, tree)
            if found.own and (found.name == module or found.name.startswith(f"{module}."))
        }
        if len(users) != 1 or not users <= touching:
            problems.append(f"{path} serves no single file of nodes/bridge that imports ComfyUI")
    assert not problems, "\n".join(problems)


def test_no_folder_of_nodes_outgrows_the_others(repository: Path):
    nodes = repository / "nodes"
    lines: dict[str, int] = {}
    for file in nodes.rglob("*.py"):
        folder = file.relative_to(nodes).parts[0]
        lines[folder] = lines.get(folder, 0) + len(file.read_text("utf-8").splitlines())
    total = sum(lines.values())
    assert {f: n for f, n in lines.items() if n > LARGEST_SHARE * total} == {}
    assert lines["bridge"] <= LARGEST_BRIDGE


FOLDERS = set(ALLOWED)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_ops/a.py", "import comfy.utils"),
        ("lora_ops/a.py", "def f():\n    from comfy_api.latest import io"),
        ("lora_ops/a.py", "from ..training import loop"),
        ("lora_ops/a.py", "from .. import training"),
        ("lora_ops/parametrizations/a.py", "from ... import nodes"),
        ("training/a.py", "from ..nodes.trainer import denoiser"),
        ("training/a.py", "from .runs.keeper import Keeper"),
        ("training/recipes/a.py", "from lora_ops import LowRank"),
        ("training/files/a.py", "from ..runs import run_folder"),
        ("nodes/pair/a.py", "from ..plain.plan import PlainRequest"),
        ("nodes/text/a.py", "from .. import trainer"),
        ("nodes/bridge/a.py", "from ..lora.layers import file_sites"),
        ("nodes/bridge/a.py", "from .. import pair"),
        ("nodes/regions/layout/a.py", "from ..sampling.run import RegionalRun"),
        ("__init__.py", "import comfy_api"),
        ("__init__.py", "from .training import loop"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str):
    assert broken_rules(Path(path), ast.parse(source), FOLDERS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_ops/parametrizations/a.py", "from ..factors import LowRank"),
        ("training/recipes/a.py", "from ...lora_ops.factors import LowRank"),
        ("nodes/pair/a.py", "import comfy.utils\nfrom ..trainer.denoiser import Denoiser"),
        ("nodes/trainer/a.py", "from . import denoiser\nfrom ...training import loop"),
        ("nodes/regions/sampling/a.py", "from ..layout.sets import RULES"),
        ("nodes/__init__.py", "from .pair import nodes"),
        ("__init__.py", "if TYPE_CHECKING:\n    from comfy_api.latest import ComfyExtension"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str):
    assert not broken_rules(Path(path), ast.parse(source), FOLDERS)


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_root_module_imports_without_comfyui(trees: dict[Path, ast.Module]):
    # Other tests of the process may have ComfyUI: only what runs on import counts.
    tree = trees[Path("__init__.py")]
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [getattr(node, "module", None) or node.names[0].name for node in at_import]
    assert sorted(modules) == ["__future__", "typing"]
