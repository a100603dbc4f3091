"""Make ComfyUI importable in this process, before any test module imports it."""

import importlib
import os
import tempfile
from pathlib import Path

import pytest
from comfyui.in_process import prepare_comfy

_BASE_DIRECTORY = tempfile.TemporaryDirectory(prefix="pastiche-comfy-")
prepare_comfy(Path(_BASE_DIRECTORY.name))
# The tolerances hold for fp32 on a CPU; test_lowvram.py runs the GPU tests in another process.
importlib.import_module("comfy.cli_args").args.cpu = os.environ.get("PASTICHE_TEST_GPU") != "1"


@pytest.fixture(autouse=True)
def _fresh_weights() -> None:
    """Restore the weights of the shared tiny networks before every test."""
    importlib.import_module("tiny").restore_shared()


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is ComfyUI's only LoRA folder."""
    known = importlib.import_module("folder_paths").folder_names_and_paths
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(known, "loras", ([str(folder)], known["loras"][1]))
    return folder


@pytest.fixture(scope="session")
def comfy_base_directory() -> Path:
    """Return the base directory of the ComfyUI in this process; the server has another."""
    return Path(_BASE_DIRECTORY.name)


@pytest.fixture(scope="session")
def node_ids() -> list[str]:
    """Return the ids of the pack's nodes, from their schemas."""
    from pack.nodes import NODES

    return [node.GET_SCHEMA().node_id for node in NODES]
