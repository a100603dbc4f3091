"""A run's folder: what is finished, where a run goes on, what changed, what an error leaves."""

import json
import os

import pytest
import torch
from pack.lora_ops import LowRank
from pack.training import lora_state
from pack.training.files.checkpoint import Checkpoint, checkpoint_file, save_checkpoint
from pack.training.runs.run_folder import RunFolder, changed_pieces
from pack.training.runs.run_store import StoredRun

PIECES = {
    "before": ["a", "b"],
    "prompts": ["a ball"],
    "settings": {"rank": 2, "flip": "never"},
    "seed": 1,
    "model": {"weights": "w", "patches": "p"},
}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "pastiche", "style", "0123456789ab")


def stored(steps: int) -> StoredRun:
    layers = {"lora_unet_x": LowRank(torch.ones(2, 3), torch.full((4, 2), float(steps)))}
    return StoredRun(steps, PIECES, {"loss": [0.5] * steps}, {"style": lora_state(layers, {})}, {})


def third(steps: int) -> int:
    """Return what a run decides by the steps that it is begun for, as the start of a style."""
    return steps // 3


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"learnt/x": torch.tensor([float(step)])}, {}, {})


def keep(folder: RunFolder, wished: int, *steps: int) -> None:
    """Keep checkpoints as a run of ``wished`` steps would that begins or goes on now."""
    point = folder.starting_point(wished, third)
    for step in steps:
        save_checkpoint(point.folder, checkpoint(step), keep=2)


def test_a_finished_run_is_found_by_its_steps(folder):
    assert folder.finished(4) is None
    folder.store(stored(4), wished=4)
    assert folder.finished(4).steps == 4
    assert folder.finished(3) is None
    assert folder.finished(5) is None


def test_a_stopped_run_is_found_until_more_steps_are_wished_for(folder):
    folder.store(stored(4), wished=10)
    for wished, found in ((3, None), (4, 4), (7, 4), (10, 4), (11, None)):
        run = folder.finished(wished)
        assert (run and run.steps) == found
    folder.store(stored(8), wished=20)  # gone on with, and stopped again
    assert folder.finished(15).steps == 8
    assert folder.finished(21) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps": "4", "wished": 10}', "\0"])
def test_a_damaged_note_of_a_stop_only_costs_the_stop(folder, content):
    folder.store(stored(4), wished=10)
    (folder.path / "stopped.json").write_text(content)
    assert folder.finished(10) is None
    assert folder.finished(4).steps == 4


def test_a_run_begins_where_there_is_nothing(folder):
    point = folder.starting_point(6, third)
    assert (point.checkpoint, point.begun_for, point.notes) == (None, 6, [])


def test_a_run_goes_on_from_its_latest_checkpoint(folder):
    keep(folder, 6, 2, 4)
    point = folder.starting_point(6, third)
    assert (point.checkpoint.step, point.begun_for) == (4, 6)
    assert point.notes == ["goes on from step 4"]


def test_an_extended_run_stays_as_it_was_begun(folder):
    keep(folder, 6, 3, 6)
    point = folder.starting_point(9, third)
    assert (point.checkpoint.step, point.begun_for) == (6, 6)
    keep(folder, 9, 8)
    again = folder.starting_point(9, third)
    assert (again.checkpoint.step, again.begun_for, again.folder) == (8, 6, point.folder)


def test_a_run_that_was_not_stored_is_taken_from_its_last_checkpoint(folder):
    keep(folder, 6, 6)
    assert folder.starting_point(6, third).checkpoint.step == 6


def test_a_shorter_run_does_not_take_over_when_the_longer_one_begins_its_style(folder):
    keep(folder, 900, 90, 100)
    point = folder.starting_point(200, third)
    assert (point.checkpoint, point.begun_for) == (None, 200)
    keep(folder, 200, 90, 150)
    # Neither has cost the other its checkpoints.
    assert folder.starting_point(200, third).begun_for == 200
    longer = folder.starting_point(900, third)
    assert (longer.checkpoint.step, longer.begun_for) == (100, 900)


def test_a_shorter_run_goes_on_where_both_begin_in_the_same_way(folder):
    keep(folder, 900, 90, 100)
    assert folder.starting_point(200).checkpoint.step == 100
    assert folder.starting_point(95).checkpoint.step == 90
    assert folder.starting_point(50).checkpoint is None


def test_a_damaged_checkpoint_is_passed_over_and_said(folder):
    keep(folder, 6, 2, 4)
    point = folder.starting_point(6, third)
    checkpoint_file(point.folder, 4).write_bytes(b"")
    again = folder.starting_point(6, third)
    assert again.checkpoint.step == 2
    assert again.notes[0].startswith("checkpoint step_00000004.safetensors was not used: ")
    assert again.notes[1] == "goes on from step 2"
    checkpoint_file(point.folder, 2).write_bytes(b"")
    none_left = folder.starting_point(6, third)
    assert none_left.checkpoint is None
    assert len(none_left.notes) == 2


def test_what_a_killed_process_left_half_written_is_removed(folder):
    keep(folder, 6, 2)
    place = folder.starting_point(6, third).folder
    (place / ".step_00000004.safetensors.ff.tmp").write_bytes(b"half")
    (folder.path / ".unfinished-ab").mkdir()
    (folder.path / ".unfinished-ab" / "style.safetensors").write_bytes(b"half")
    (folder.path / ".pieces.json.ff.tmp").write_bytes(b"half")
    with folder.held():
        folder.starting_point(6, third)
        names = {path.name for path in folder.path.rglob("*") if path.is_file()}
    assert names == {"lock", "step_00000002.safetensors"}


def test_an_error_before_anything_is_kept_leaves_no_folder(folder):
    def broken() -> None:
        with folder.held():
            folder.describe(PIECES)
            (folder.path / "previews").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not folder.path.exists()


def test_an_error_after_a_checkpoint_leaves_it(folder):
    def broken() -> None:
        with folder.held():
            folder.describe(PIECES)
            keep(folder, 6, 2)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert json.loads((folder.path / "pieces.json").read_text()) == PIECES
    assert folder.starting_point(6, third).checkpoint.step == 2


def test_the_second_to_hold_it_is_refused_and_destroys_nothing(folder):
    with folder.held():
        keep(folder, 6, 2)
        with pytest.raises(RuntimeError, match="-0123456789ab in use by another"), folder.held():
            pytest.fail("both hold it")
    assert folder.starting_point(6, third).checkpoint.step == 2


def other(folder: RunFolder, identity: str, when: float, **changes) -> RunFolder:
    run = RunFolder(folder.root, folder.name, identity)
    run.path.mkdir(parents=True)
    run.describe({**PIECES, **changes})
    os.utime(run.path / "pieces.json", (when, when))
    return run


def test_what_changed_since_the_last_run_is_said(folder):
    other(folder, "a" * 12, 1000.0, seed=2, prompts=["a box"])
    last = other(folder, "b" * 12, 2000.0, settings={"rank": 3, "flip": "never"})
    folder.path.mkdir()
    assert folder.describe(PIECES) == (
        "starts anew, since this changed since the last run: settings rank"
    )
    assert folder.describe(PIECES) is None  # it goes on
    (last.path / "pieces.json").unlink()
    folder_of_another = RunFolder(folder.root, "other", "c" * 12)
    folder_of_another.path.mkdir()
    assert folder_of_another.describe(PIECES) is None


def test_the_run_that_was_trained_last_is_the_one_compared_with(folder):
    first = other(folder, "a" * 12, 1000.0, seed=2)
    other(folder, "b" * 12, 2000.0, prompts=["a box"])
    first.describe(PIECES)  # the first is gone on with
    folder.path.mkdir()
    assert folder.describe(PIECES).endswith("last run: seed")


def test_a_damaged_description_is_passed_over(folder):
    other(folder, "a" * 12, 1000.0, seed=2)
    last = other(folder, "b" * 12, 2000.0)
    (last.path / "pieces.json").write_text("{")
    os.utime(last.path / "pieces.json", (3000, 3000))
    folder.path.mkdir()
    assert folder.describe(PIECES).endswith("last run: seed")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"seed": 2}, ["seed"]),
        ({"before": ["a", "c"]}, ["before 2"]),
        ({"before": ["a", "b", "c"]}, ["before"]),
        ({"prompts": ["a box"]}, ["prompts"]),
        ({"settings": {"rank": 2, "flip": "random"}}, ["settings flip"]),
        ({"settings": {"rank": 2, "flip": "never", "warmup": 3}}, ["settings warmup"]),
        ({"model": {"weights": "w", "patches": "q"}, "seed": 3}, ["seed", "model patches"]),
        ({"steps of the cosine schedule": 9}, ["steps of the cosine schedule"]),
    ],
)
def test_pieces_are_named_one_by_one(changes, names):
    assert changed_pieces(PIECES, {**PIECES, **changes}) == names
