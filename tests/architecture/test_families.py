"""One file per model family: nothing else asks for a class or decides by how files are named."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pack.training import FAMILIES

CLASSES = Path("nodes/bridge/families.py")  # the one file that knows ComfyUI's classes of models
# The functions that name layers in files, and the metadata that say how.
NAMING = {
    ("nodes/fusion/layers.py", "_file_names"),
    ("nodes/trainer/target_layers.py", "_file_names"),
    ("training/files/metadata.py", "_base"),
}
CLASS_MODULES = {"model_base", "supported_models"}
CLASS_OF_MODEL = re.compile(r"type\((?:\w+\.)*model\.(?:model|diffusion_model|model_config)\)")
NETWORKS = re.compile(
    r"^comfy\.ldm\.(flux|wan|lumina|qwen_image|modules\.diffusionmodules\.mmdit)\b"
)


def class_checks(tree: ast.Module) -> list[int]:
    """Return the lines that ask for the class of a model, its configuration or its network."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call) and CLASS_OF_MODEL.fullmatch(ast.unparse(node)):
            found.add(node.lineno)
            continue
        else:
            continue
        if any(CLASS_MODULES & set(name.split(".")) or NETWORKS.search(name) for name in names):
            found.add(node.lineno)
    return sorted(found)


def test_only_one_file_asks_for_a_class_of_model(trees: dict[Path, ast.Module]):
    found = {
        path.as_posix(): class_checks(tree)
        for path, tree in trees.items()
        if path.parts[0] == "nodes" and path != CLASSES
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import comfy.supported_models as supported",
        "from comfy import model_base",
        "from comfy.model_base import Flux",
        "from comfy.ldm.flux.model import Flux",
        "isinstance(model.model, comfy.model_base.Flux)",
        "type(model.model).__name__",
        "type(request.model.model.diffusion_model) is Flux",
    ],
)
def test_a_question_for_a_class_is_seen(source: str):
    assert class_checks(ast.parse(source)) == [1]


def users(tree: ast.AST, attribute: str, inside: str = "") -> Iterator[str]:
    """Yield the function around every use of an attribute, an empty name outside of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Attribute) and node.attr == attribute:
            yield inside
        name = node.name if isinstance(node, ast.FunctionDef) else inside
        yield from users(node, attribute, name)


def test_how_files_are_named_decides_nothing_else(trees: dict[Path, ast.Module]):
    found = {
        (path.as_posix(), function)
        for path, tree in trees.items()
        for function in users(tree, "kohya_keys")
    }
    assert found == NAMING


def test_no_other_file_lists_families_by_name(trees: dict[Path, ast.Module]):
    found = []
    for path, tree in trees.items():
        if path.parts[:2] == ("training", "families"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in FAMILIES:
                found.append(f"{path}:{node.lineno}")
    assert found == []
