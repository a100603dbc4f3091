"""Import the pack as ComfyUI does, under the name ``pack``.

The folders of scripts and of code that tests share are put last on the module path.
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

# ruff: noqa: E402 - these modules are on the path only now
from comfyui.pack_loader import load_pack
from comfyui.server import ComfyServer, make_base_directory
from comfyui.toy_base import place_toy_base
from toy_control import place_control

load_pack("pack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, which is the name of its folder."""
    for item in items:
        for tier in ("comfy", "browser"):
            if TESTS / tier in item.path.parents:
                item.add_marker(tier)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the pack's folder."""
    return TESTS.parent


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Yield a real ComfyUI server with the pack; ``comfy_server.log_text()`` is its log."""
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
    """Return the same server with the toy base, its ControlNet and the example pictures."""
    place_toy_base(comfy_server.base_directory)
    place_control(comfy_server.base_directory)
    return comfy_server
