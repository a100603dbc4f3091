"""Habits that a reader relies on: short files, tidy code, workflows without leftovers."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from templates.strip_previews import without_previews

LONGEST = 400
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


def test_no_file_is_longer_than_the_budget(committed: list[Path], repository: Path):
    lengths = {
        file.relative_to(repository).as_posix(): len(file.read_text("utf-8").splitlines())
        for file in committed
        if file.suffix in SOURCES
    }
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long


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
