"""Parse the pack's Python files once for all architecture tests."""

import ast
from pathlib import Path

import pytest

LAYERS = ("lora_ops", "training", "nodes")


@pytest.fixture(scope="session")
def trees(repository: Path) -> dict[Path, ast.Module]:
    """Return every module that ships, by its path inside the repository."""
    files = [repository / "__init__.py"]
    for layer in LAYERS:
        files += sorted((repository / layer).rglob("*.py"))
    return {file.relative_to(repository): ast.parse(file.read_text("utf-8")) for file in files}


@pytest.fixture(scope="session")
def node_ids(trees: dict[Path, ast.Module]) -> list[str]:
    """Return the ids that node modules declare, read without ComfyUI."""
    found = []
    for path, tree in trees.items():
        if path.parts[0] != "nodes":
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for keyword in call.keywords:
                if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant):
                    found.append(keyword.value.value)
    assert found, "no node declares an id"
    return found
