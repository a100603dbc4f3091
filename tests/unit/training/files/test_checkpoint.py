"""Checkpoints: what comes back, what is passed over, and what a full disk leaves."""

import errno
import os
from pathlib import Path

import pytest
import torch
from pack.training.files import checkpoint as checkpoints_module
from pack.training.files.checkpoint import (
    Checkpoint,
    checkpoint_file,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    remove_unfinished,
    save_checkpoint,
    step_of,
)


def made(step: int = 4) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "learnt/lora/layer/up": torch.randn(3, 2, generator=generator),
        "optimizer/lora/layer/up/step": torch.tensor(float(step)),
        "optimizer/lora/layer/up/exp_avg": torch.full((3, 2), 1e-40),  # a denormal number
    }
    curves = {"loss": [0.1, 1 / 3, 2.0**-40], "style": [0.7]}
    return Checkpoint(step, tensors, {"optimizer/lora/layer/up/count": 3}, curves)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    path = save_checkpoint(tmp_path / "new", made(), keep=2)
    found = load_checkpoint(path)
    assert (found.step, found.scalars, found.curves) == (
        4,
        made().scalars,
        made().curves,
    )
    assert found.tensors.keys() == made().tensors.keys()
    for name, tensor in made().tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    assert step_of(path) == 4


def test_equal_states_are_equal_files(tmp_path):
    one, two = (save_checkpoint(tmp_path / name, made(), keep=1) for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_the_last_ones_are_kept(tmp_path):
    for step in (1, 2, 3, 10, 20, 1_000_000):
        save_checkpoint(tmp_path, made(step), keep=3)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [1_000_000, 20, 10]


def test_those_of_later_steps_stay_and_do_not_count(tmp_path):
    for step in (8, 9, 1, 2, 3):
        save_checkpoint(tmp_path, made(step), keep=2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [9, 8, 3, 2]


def test_the_latest_of_at_most_so_many_steps_is_found(tmp_path):
    for step in (3, 6, 9):
        save_checkpoint(tmp_path, made(step), keep=9)
    for most, step in ((20, 9), (9, 9), (8, 6), (3, 3)):
        found, notes = latest_checkpoint(tmp_path, most)
        assert (found.step, notes) == (step, [])
    assert latest_checkpoint(tmp_path, 2) == (None, [])
    assert latest_checkpoint(tmp_path / "none", 2) == (None, [])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_version(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"format":"1"', b'"format":"9"'))


def other_step(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step":"9"', b'"step":"8"'))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut, "must be a whole safetensors file, but it is cut short"),
        (empty, "must be a safetensors file"),
        (other_version, "must be a checkpoint of version 1, got version 9"),
        (other_step, "must be as it was written, got one that was changed since"),
        (one_bit, "must be as it was written, got one that was changed since"),
    ],
)
def test_the_one_before_is_used_and_said(tmp_path, spoil, why):
    for step in (6, 9):
        save_checkpoint(tmp_path, made(step), keep=9)
    spoil(checkpoint_file(tmp_path, 9))
    found, (note,) = latest_checkpoint(tmp_path, 20)
    assert found.step == 6
    assert note.startswith("checkpoint step_00000009.safetensors was not used: ")
    assert why in note
    save_checkpoint(tmp_path, made(9), keep=9)  # the run comes by there again
    assert latest_checkpoint(tmp_path, 20)[0].step == 9


def full_disk(monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_keeps_those_before(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, made(step), keep=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk(monkeypatch)
    with pytest.raises(RuntimeError, match=r"No space left on device; it was not written, free"):
        save_checkpoint(tmp_path, made(3), keep=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_an_older_file_of_the_same_step(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, made(1), keep=2)
    before = path.read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(RuntimeError, match="No space left"):
        save_checkpoint(tmp_path, made(1), keep=2)
    assert path.read_bytes() == before


def test_a_file_appears_whole(tmp_path, monkeypatch):
    """Until it is renamed nothing has its name: a killed process leaves no half of it."""
    seen = []
    replace = os.replace

    def watched(source, target) -> None:
        seen.append(names(tmp_path))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_checkpoint(tmp_path, made(), keep=2)
    ((unfinished,),) = seen
    assert unfinished.startswith(".")
    assert unfinished.endswith(".tmp")
    assert names(tmp_path) == ["step_00000004.safetensors"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"checkpoints need a folder .*allow writing there"):
        save_checkpoint(tmp_path / "file" / "new", made(), keep=2)


def test_unfinished_files_are_removed_and_no_others(tmp_path):
    save_checkpoint(tmp_path, made(), keep=2)
    (tmp_path / ".step_00000005.safetensors.ab.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("")
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "none")
    assert names(tmp_path) == ["notes.txt", "step_00000004.safetensors"]


def test_other_names_are_no_checkpoints(tmp_path):
    for name in ("step_1.safetensors", "step_00000001.txt", "style.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="must be named step_<number>"):
        step_of(tmp_path / "style.safetensors")


def test_the_format_is_part_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "FORMAT", "2")
    path = save_checkpoint(tmp_path, made(), keep=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 1, got version 2"):
        load_checkpoint(path)
