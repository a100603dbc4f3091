"""Docstrings, constants and tooltips follow the rules of CONTRIBUTING that a test can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCSTRING_FOLDERS = ("lora_ops", "training", "nodes")
TOOLTIP_FOLDERS = ("nodes",)

_QUESTION = re.compile(r"(What|Who|Whom|Whose|Where|How)\b")
_FRAGMENT = re.compile(r"(Of|As above|Likewise|Its|As in)\b")
_SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:")
_ENTRY = re.compile(r" {4}(?:\w+: )?(?P<text>\S.*)")
_TOOLTIP = re.compile(r"(Of|In which)\b")

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(trees: dict[Path, ast.Module], folder: str) -> Iterator[tuple[str, Definition]]:
    """Every module, class and function below a folder, with its place for messages."""
    for path, tree in trees.items():
        if path.parts[0] != folder:
            continue
        for node in ast.walk(tree):
            if isinstance(node, Definition):
                yield f"{path}:{getattr(node, 'lineno', 1)}", node


def is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def section_entries(docstring: str) -> Iterator[str]:
    """The text of every entry of the sections, without the argument's name."""
    inside = False
    for line in docstring.split("\n"):
        if line in _SECTIONS:
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and (entry := _ENTRY.fullmatch(line)):
            yield entry["text"]


@pytest.mark.parametrize("folder", DOCSTRING_FOLDERS)
def test_a_docstring_begins_with_no_question_word(trees: dict[Path, ast.Module], folder: str):
    found = [
        (place, docstring.split("\n")[0])
        for place, node in definitions(trees, folder)
        if (docstring := ast.get_docstring(node)) and _QUESTION.match(docstring)
    ]
    assert found == []


@pytest.mark.parametrize("folder", DOCSTRING_FOLDERS)
def test_an_entry_of_a_section_can_be_read_alone(trees: dict[Path, ast.Module], folder: str):
    found = [
        (place, entry)
        for place, node in definitions(trees, folder)
        for entry in section_entries(ast.get_docstring(node) or "")
        if _FRAGMENT.match(entry) or _QUESTION.match(entry)
    ]
    assert found == []


@pytest.mark.parametrize("folder", DOCSTRING_FOLDERS)
def test_no_docstring_has_a_heading(trees: dict[Path, ast.Module], folder: str):
    found = [
        place
        for place, node in definitions(trees, folder)
        if re.search(r"^# ", ast.get_docstring(node) or "", re.MULTILINE)
    ]
    assert found == []


@pytest.mark.parametrize("folder", DOCSTRING_FOLDERS)
def test_no_text_follows_a_constant(trees: dict[Path, ast.Module], folder: str):
    found = [
        f"{place}, text in line {statement.lineno}"
        for place, node in definitions(trees, folder)
        for statement in node.body[1:]
        if is_text(statement)
    ]
    assert found == []


@pytest.mark.parametrize("folder", TOOLTIP_FOLDERS)
def test_a_tooltip_has_a_subject(trees: dict[Path, ast.Module], folder: str):
    """Every text in a file of node declarations, as tooltips also pass through helpers."""
    found = []
    for path, tree in trees.items():
        if path.parts[0] == folder and path.name.startswith("nodes"):
            found += [
                f"{path}:{node.lineno} {node.value}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and _TOOLTIP.match(node.value)
            ]
    assert found == []
