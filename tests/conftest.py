"""Imports the pack as ComfyUI does, under the name ``pack``.

The folders of scripts and of what tests share come last on the path.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != TESTS.parent]
sys.path += [str(TESTS.parent / "scripts")]
sys.path += [str(TESTS / folder) for folder in ("graphs", "support", "oracles")]

# ruff: noqa: E402 - found by the line above
from comfyui.pack_loader import load_pack
from comfyui.server import ComfyServer, make_base_directory
from comfyui.toy_base import place_toy_base
from toy_control import place_control

load_pack("pack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's folder is its tier: no file has to say so again."""
    for item in items:
        for tier in ("comfy", "browser"):
            if TESTS / tier in item.path.parents:
                item.add_marker(tier)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The pack's folder."""
    return TESTS.parent


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A real ComfyUI server with the pack in it; the log is in ``comfy_server.log_text()``."""
    if "COMFYUI_PATH" not in os.environ:
        raise RuntimeError(
            "COMFYUI_PATH must name ComfyUI's folder: start with scripts/dev.py test"
        )
    folder = tmp_path_factory.mktemp("server")
    server = ComfyServer(
        Path(sys.executable),
        Path(os.environ["COMFYUI_PATH"]),
        make_base_directory(folder / "base"),
        log=folder / "server.log",
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def toy_server(comfy_server: ComfyServer) -> ComfyServer:
    """The same server with the toy base and its ControlNet, and the examples in its input."""
    place_toy_base(comfy_server.base_directory)
    place_control(comfy_server.base_directory)
    return comfy_server
