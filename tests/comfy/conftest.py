"""Makes ComfyUI importable in this process, before any test module imports it."""

import importlib
import os
import tempfile
from pathlib import Path

import pytest
from comfy_in_process import prepare_comfy

_BASE_DIRECTORY = tempfile.TemporaryDirectory(prefix="pastiche-comfy-")
prepare_comfy(Path(_BASE_DIRECTORY.name))
# The tolerances are those of fp32 on a CPU; test_lowvram.py starts the GPU's tests on their own.
importlib.import_module("comfy.cli_args").args.cpu = os.environ.get("PASTICHE_TEST_GPU") != "1"


@pytest.fixture(autouse=True)
def _own_weights() -> None:
    """Every test finds the shared tiny networks as they were loaded."""
    importlib.import_module("tiny").restore_shared()


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's only LoRA folder, empty."""
    known = importlib.import_module("folder_paths").folder_names_and_paths
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(known, "loras", ([str(folder)], known["loras"][1]))
    return folder


@pytest.fixture(scope="session")
def comfy_base_directory() -> Path:
    """The base directory of the ComfyUI in this process; the server has another."""
    return Path(_BASE_DIRECTORY.name)


@pytest.fixture(scope="session")
def node_ids() -> list[str]:
    """The ids of the pack's nodes, from their schemas."""
    from pack.nodes import NODES

    return [node.GET_SCHEMA().node_id for node in NODES]
