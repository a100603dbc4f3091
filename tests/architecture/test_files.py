"""Habits that a reader relies on: short files, tidy code, workflows without leftovers."""

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from templates.strip_previews import without_previews

LONGEST = 500  # lines of a source file
LONGEST_PAGE = 120  # lines of ARCHITECTURE.md
SOURCES = (".py", ".js")
TEXT = (".cfg", ".css", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml")
# A home, a root or a temporary folder, a drive: the path of somebody's machine.
MACHINE_PATH = re.compile(
    r"""(?<![\w.:/-])(?:/(?:home|Users|root|work|tmp|var/folders|mnt)/[\w.-]|[A-Z]:\\{1,2}[\w.-])"""
)
WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def committed(repository: Path) -> list[Path]:
    """The repository's files, without what tools leave in it."""
    left_out = {".git", "__pycache__", ".ruff_cache", ".pytest_cache", ".venv", "pastiche-demo"}
    files = []
    for folder, folders, names in os.walk(repository):
        folders[:] = [name for name in folders if name not in left_out]
        files += [Path(folder) / name for name in names]
    return files


def test_no_file_is_too_long(committed: list[Path], repository: Path):
    lengths = {
        file.relative_to(repository).as_posix(): len(file.read_text("utf-8").splitlines())
        for file in committed
        if file.suffix in SOURCES
    }
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long


@pytest.fixture(scope="module")
def sources(committed: list[Path], repository: Path) -> dict[str, ast.Module]:
    """All Python files of the repository, parsed, by their path inside it."""
    return {
        file.relative_to(repository).as_posix(): ast.parse(file.read_text("utf-8"))
        for file in committed
        if file.suffix == ".py"
    }


def splats(tree: ast.Module) -> list[int]:
    """Return the lines of calls into which a literal tuple or list is unpacked."""
    return [
        call.lineno
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for argument in call.args
        if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
    ]


def test_no_literal_is_unpacked_into_a_call(sources: dict[str, ast.Module]):
    found = {path: splats(tree) for path, tree in sources.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_an_unpacked_literal_is_seen():
    assert splats(ast.parse("f(*(a, b), c)\ng(h(*[1, 2]))")) == [1, 2]
    assert splats(ast.parse("f(*values, *(x for x in y), **{})")) == []


def test_the_architecture_page_stays_one_page(repository: Path):
    page = (repository / "ARCHITECTURE.md").read_text("utf-8")
    assert len(page.splitlines()) <= LONGEST_PAGE
    named = re.findall(r"`((?:nodes|training|lora_ops|tests|web|scripts)/[\w./]*\w)/?`", page)
    assert named
    assert [name for name in named if not (repository / name).exists()] == []


def test_no_file_imports_a_test_module(sources: dict[str, ast.Module]):
    problems = []
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            else:
                continue
            if any(part.startswith("test_") for name in names for part in name.split(".")):
                problems.append(f"{path}:{node.lineno}: what tests share belongs in tests/support")
    assert not problems, "\n".join(problems)


def test_no_text_names_a_path_of_a_machine(committed: list[Path], repository: Path):
    found = []
    for file in committed:
        if file.suffix not in TEXT or file.is_relative_to(repository / "tests"):
            continue
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{file.relative_to(repository)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["/home/ada/x", '"/tmp/run"', r"C:\models", r"see C:\\models"])
def test_a_machine_path_is_seen(text: str):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://x.org/home/a", "a/tmp/b", "output/pastiche/run", "1:1"])
def test_other_paths_pass(text: str):
    assert not MACHINE_PATH.search(text)


def test_there_is_a_workflow():
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_holds_no_pictures_and_no_absolute_paths(path: Path):
    workflow = json.loads(path.read_text("utf-8"))
    assert without_previews(workflow) == workflow
    absolute = [text for text in _strings(workflow) if re.match(r"(/|~|[A-Za-z]:[\\/])", text)]
    assert not absolute


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_the_changelog_begins_with_the_version_of_the_pack(repository: Path):
    project = (repository / "pyproject.toml").read_text("utf-8")
    version = re.search(r'^version = "([^"]+)"$', project, re.MULTILINE)
    newest = re.search(
        r"^## \[([^\]]+)\]", (repository / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert version
    assert newest
    assert newest[1] == version[1]
