"""Read the imports of modules from their source, and find import cycles."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACK = "pack"  # the name under which tests import the repository's root


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Args:
        line: Line of the statement.
        name: Dotted name, relative to the repository's root for the pack's modules.
        own: Whether the import is relative, and so of a module of the pack.
        types_only: Whether the import is only executed by type checkers.
    """

    line: int
    name: str
    own: bool
    types_only: bool


def imports(path: Path, tree: ast.Module) -> list[Import]:
    """Return all imports of a module, at every level of the source.

    ``from .x import y`` is listed as ``x.y``, since ``y`` may be a module.

    Args:
        path: Path of the file, relative to the repository's root.
        tree: Parsed source of the file.
    """
    guarded = {id(node) for guard in _type_guards(tree) for node in ast.walk(guard)}
    package = path.parent.parts
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            base, names, own = "", [alias.name for alias in node.names], False
        elif isinstance(node, ast.ImportFrom):
            assert node.level - 1 <= len(package), f"{path}:{node.lineno} leaves the repository"
            own = node.level > 0
            above = package[: len(package) - node.level + 1] if own else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            dotted = f"{base}.{name}".strip(".")
            found.append(Import(node.lineno, dotted, own, id(node) in guarded))
    return found


def _type_guards(tree: ast.Module) -> Iterator[ast.If]:
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield node


def module_imports(repository: Path, roots: Iterable[str]) -> dict[str, set[str]]:
    """Return for every module under ``roots`` the modules there that it imports, as paths.

    Modules outside the pack import each other by their bare name, from folders on the path.
    """
    files = [
        file.relative_to(repository) for root in roots for file in (repository / root).rglob("*.py")
    ]
    dotted = {".".join(file.with_suffix("").parts): file.as_posix() for file in files}
    dotted |= {
        name.removesuffix(".__init__"): file
        for name, file in dotted.items()
        if name.endswith(".__init__")
    }
    bare: dict[str, set[str]] = defaultdict(set)
    for file in files:
        bare[file.stem].add(file.as_posix())
    graph: dict[str, set[str]] = {}
    for file in files:
        targets = graph.setdefault(file.as_posix(), set())
        tree = ast.parse((repository / file).read_text("utf-8"))
        for found in imports(file, tree):
            name = found.name
            if found.own or name.startswith(f"{PACK}."):
                name = name.removeprefix(f"{PACK}.")
                while name and name not in dotted:
                    name = name.rpartition(".")[0]
                targets |= {dotted[name]} if name else set()
            elif len(bare[name.split(".")[0]]) == 1:
                targets |= bare[name.split(".")[0]]
        targets.discard(file.as_posix())
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other, sorted (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found
