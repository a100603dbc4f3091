"""The page's modules: ComfyUI imports every one of them, so only the entries may register."""

from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web" / "js"
MODULES = sorted(WEB.rglob("*.js"))


def name(path: Path) -> str:
    return path.relative_to(WEB).as_posix()


def test_each_folder_has_one_entry():
    entries = [path for path in MODULES if path.name == "extension.js"]
    assert {path.parent for path in entries} == {path for path in WEB.iterdir() if path.is_dir()}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_an_entry_registers_an_extension(path: Path):
    registrations = path.read_text("utf-8").count("app.registerExtension(")
    assert registrations == (path.name == "extension.js")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_its_types_checked(path: Path):
    text = path.read_text("utf-8")
    assert text.startswith("// @ts-check\n")
    assert "@ts-ignore" not in text
    assert "@ts-nocheck" not in text
