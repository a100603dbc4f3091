"""Run folders: names, ids, whole or absent, same bytes."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pack.lora_ops import LowRank
from pack.training import lora_state
from pack.training.runs import run_store
from pack.training.runs.run_store import (
    StoredRun,
    checked_run_name,
    load_run,
    require_space,
    result_folder,
    run_id,
    save_run,
)

PIECES = {"seed": 1, "settings": {"rank": 2, "flip": "never"}, "before": ["a", "b"]}


def stored(value: float = 1.0) -> StoredRun:
    layers = {"lora_unet_x": LowRank(torch.full((2, 3), value), torch.full((4, 2), 0.1))}
    metadata = {f"key {n}": f"värde {n}" for n in range(9)}
    loras = {"style": lora_state(layers, metadata), "content_1": lora_state(layers, {})}
    return StoredRun(5, PIECES, {"loss": [0.1, 1 / 3]}, loras, {"family": "SD1.5"})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_comes_back_as_it_was(tmp_path):
    folder = result_folder(tmp_path, "name", "abc", 5)
    save_run(folder, stored())
    run = load_run(folder)
    assert run is not None
    assert (run.steps, run.pieces, run.facts) == (5, PIECES, {"family": "SD1.5"})
    assert run.losses == {"loss": [0.1, 1 / 3]}
    assert run.loras["style"].metadata == stored().loras["style"].metadata
    for key, tensor in stored().loras["style"].items():
        assert torch.equal(run.loras["style"][key], tensor)
    assert sorted(files_of(folder)) == ["content_1.safetensors", "run.json", "style.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["5 steps"]


def test_equal_runs_are_equal_files(tmp_path):
    save_run(tmp_path / "one", stored())
    shuffled = stored()
    lora = shuffled.loras["style"]
    lora.metadata = dict(reversed(lora.metadata.items()))
    save_run(tmp_path / "two", shuffled)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_stored_run_is_never_overwritten(tmp_path):
    save_run(tmp_path / "run", stored(1.0))
    before = files_of(tmp_path / "run")
    save_run(tmp_path / "run", stored(2.0))
    assert files_of(tmp_path / "run") == before


def test_there_is_no_run_where_none_was_finished(tmp_path):
    assert load_run(tmp_path / "absent") is None
    save_run(tmp_path / "run", stored())
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**description, "format": 99}))
    assert load_run(tmp_path / "run") is None


@pytest.mark.parametrize("name", ["run.json", "style.safetensors"])
def test_a_damaged_run_is_named_with_what_to_do(tmp_path, name):
    save_run(tmp_path / "run", stored())
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"must be whole, but .*delete that folder to train anew"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("failing", ["content_1.safetensors", "run.json"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    original = run_store.write_new

    def write(path: Path, *pieces: bytes) -> None:
        if path.name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, *pieces)

    monkeypatch.setattr(run_store, "write_new", write)
    folder = result_folder(tmp_path, "name", "abc", 5)
    with pytest.raises(OSError, match="No space left"):
        save_run(folder, stored())
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(run_store.shutil, "disk_usage", lambda path: usage)
    require_space(tmp_path, 2**20)
    with pytest.raises(RuntimeError, match="needs 10 MiB of free space, got 3 MiB; free some"):
        require_space(tmp_path, 10 * 2**20)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"must be writable, got: .*another output folder"):
        require_space(tmp_path / "file" / "pastiche", 1)


def test_the_id_follows_the_values_not_their_order():
    identity = run_id(PIECES)
    assert len(identity) == 12
    assert identity == run_id(dict(reversed(PIECES.items())))
    assert identity != run_id({**PIECES, "seed": 2})
    assert identity != run_id({**PIECES, "before": ["b", "a"]})


@pytest.mark.parametrize("name", ["my_style", "Ünïcode 2", "a.b", " spaced "])
def test_good_names_pass(name):
    assert checked_run_name(name) == name.strip()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/root",
        "C:",
        "C:\\x",
        "a:b",
        "x*",
        "x?",
        '"',
        "<",
        ">",
        "|",
        "a\nb",
        "a\0",
        "CON",
        "nul",
        "com1.txt",
        "dot.",
        "x" * 81,
    ],
)
def test_bad_names_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"^run_name must .*(write a short name|shorten it)"):
        checked_run_name(name)
