"""Imports inside `benchmarks/` and `scripts/`: no circles, studies apart, everything at the top."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from module_graph import circles

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = {"benchmarks": REPOSITORY / "benchmarks", "scripts": REPOSITORY / "scripts"}
STUDIES = {path.parent.name for path in ROOTS["benchmarks"].glob("*/study.py")}
# They are started by any Python or as scripts of their own, before all packages can be imported.
IMPORT_LATER = {"run.py", "toyworld", "drawn"}


def files(root: str) -> list[Path]:
    return sorted(ROOTS[root].rglob("*.py"))


def module_name(path: Path, root: str) -> str:
    parts = path.relative_to(ROOTS[root]).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, root: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield every import of a module in the same root, with its dotted name below the root."""
    package = path.parent.relative_to(ROOTS[root]).parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            names = [f"{stem}.{alias.name}".lstrip(".") for alias in node.names]
        else:
            continue
        for name in names:
            yield node, name


def graph(root: str) -> dict[str, set[str]]:
    modules = {module_name(path, root) for path in files(root)}
    found: dict[str, set[str]] = {}
    for path in files(root):
        name = module_name(path, root)
        targets = found.setdefault(name, set())
        for _, target in imports(path, root):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != name:
                targets.add(target)
    return found


@pytest.mark.parametrize("root", ROOTS)
def test_no_imports_form_a_circle(root: str):
    assert circles(graph(root)) == []


def test_a_study_imports_no_other_study():
    problems = []
    for path in files("benchmarks"):
        own = path.relative_to(ROOTS["benchmarks"]).parts[0]
        for _, name in imports(path, "benchmarks"):
            other = name.split(".")[0]
            if other in STUDIES - {own}:
                problems.append(f"{path.name} of {own} imports {name}")
    assert not problems


def test_studies_import_at_the_top_of_their_files():
    problems = []
    for path in files("benchmarks"):
        if path.relative_to(ROOTS["benchmarks"]).parts[0] in IMPORT_LATER:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        at_top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in at_top:
                problems.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert not problems


def test_no_study_uses_a_private_name_of_another_module():
    problems = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in files("benchmarks")
        for _, name in imports(path, "benchmarks")
        if name.rpartition(".")[2].startswith("_") and name != "__future__.annotations"
    ]
    assert not problems
