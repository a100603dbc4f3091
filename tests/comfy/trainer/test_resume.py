"""A training that breaks off: what is kept, what is left as it was, and how it goes on."""

import logging
import random
import re
from functools import cache
from pathlib import Path

import folder_paths
import pytest
import torch
from pack.training import TrainingSettings
from pack.training.files import checkpoint
from pack.training.runs.lock import run_lock
from pair_inputs import identity, picture, progress, queue
from resume_case import (
    CANCEL,
    EVERY_STEP,
    STEPS,
    breaking,
    cancelled_at,
    left_behind,
    next_picture,
    results,
    undisturbed_run,
)
from tiny import restore_shared, tiny, tiny_clip, tiny_vae

__all__ = ["undisturbed_run"]  # a fixture

FORWARDS = {  # by step, style from the third on
    "batched": [1, 1, 1, 1, 1, 1],
    "sequential": [1, 1, 2, 2, 2, 2],
}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


ENDS = {
    "cancel": (CANCEL, ""),
    "error": (ZeroDivisionError, ""),
    "out of memory": (
        torch.OutOfMemoryError,
        "training must fit into the device's memory, but it ran out; turn on checkpointing",
    ),
}
CASES = [
    *(("sd3", "batched", end, "forward") for end in ENDS),
    ("sd3", "sequential", "cancel", "forward"),
    ("sd3", "sequential", "out of memory", "backward"),
    ("sd15", "sequential", "cancel", "backward"),
    ("flux", "batched", "out of memory", "backward"),
]


@pytest.mark.parametrize(("name", "packing", "end", "where"), CASES)
def test_a_run_that_breaks_off_leaves_all_as_it_was_and_goes_on(
    name, packing, end, where, output, undisturbed, caplog
):
    error, sentence = ENDS[end]
    draw = random.Random(f"{name} {packing} {end} {where}")
    done = draw.randrange(1, STEPS)  # whole steps before it breaks off
    call = sum(FORWARDS[packing][:done]) + draw.randint(1, FORWARDS[packing][done])
    expected = undisturbed(name, packing=packing)
    restore_shared()
    model = tiny(name)
    before, picture_before = left_behind(model), next_picture(model)
    raised = CANCEL if error is CANCEL else RuntimeError
    with (
        caplog.at_level(logging.WARNING),
        breaking(model, call, error, where),
        pytest.raises(raised) as caught,
        progress() as steps,
    ):
        queue(name, model=model, steps=STEPS, packing=packing)
    assert steps == list(range(1, done + 1))
    kept = f"step {done} is kept: queue the same graph again to go on from it"
    assert f"training broke off; {kept}" in caplog.text
    if error is not CANCEL:
        assert kept in str(caught.value)
        assert str(caught.value).startswith(sentence)
    assert left_behind(model) == before
    assert torch.equal(next_picture(model), picture_before)

    with progress() as steps:
        node = queue(name, model=model, steps=STEPS, packing=packing)
    assert steps == list(range(done + 1, STEPS + 1))
    assert f"goes on from step {done}" in node.ui["text"][0]
    assert results(output) == expected


def test_a_run_that_breaks_off_before_its_first_step_says_what_was_wrong_alone(output):
    model = tiny("sd3")
    with (
        breaking(model, 1, ZeroDivisionError, "forward"),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        queue(model=model)
    assert "kept" not in str(caught.value)
    with (
        breaking(model, 1, torch.OutOfMemoryError, "forward"),
        pytest.raises(RuntimeError, match=r"it ran out; turn on checkpointing.*preset$"),
    ):
        queue(model=model)
    assert list(output.glob("pastiche/*")) == []


def test_a_run_may_break_off_again_and_again(output, undisturbed, caplog):
    expected = undisturbed(packing="sequential")
    model = tiny("sd3")
    for done in (2, 3, 4, 5):
        # The second update of a step breaks off: its first one is taken back every time.
        with (
            breaking(model, 4, CANCEL, "forward"),
            pytest.raises(CANCEL),
            caplog.at_level(logging.WARNING),
        ):
            queue(model=model, steps=STEPS, packing="sequential")
        assert f"step {done} is kept" in caplog.text
    queue(model=model, steps=STEPS, packing="sequential")
    assert results(output) == expected


CHANGED = {
    "before": {"before": picture(seed=9)},
    "after": {"after": picture(seed=9)},
    "prompts 1": {"content_prompt": "a blue ball"},
    "prompts 2": {"style_words": "in oil"},
    "seed": {"seed": 6},
    "settings rank": {"rank": 3},
    "settings flip": {"settings": TrainingSettings(flip="always")},
    "settings ema_decay": {"settings": TrainingSettings(ema_decay=0.9)},
    "model weights": {"model": lambda: tiny("sd3", seed=1)},
    "clip": {"clip": lambda: tiny_clip(seed=1)},
    "vae": {"vae": lambda: tiny_vae(16, seed=1)},
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_changed_starts_anew_and_is_named(name):
    changes = {key: made() if callable(made) else made for key, made in CHANGED[name].items()}
    cancelled_at(1, steps=2)
    with progress() as steps:
        (text,) = queue(**{"steps": 2, **changes}).ui["text"]
    assert steps == [1, 2]
    (said,) = re.findall(r"starts anew, since this changed since the last run: (.*)", text)
    assert name in said
    with progress() as steps:
        (text,) = queue(steps=2).ui["text"]  # back again: the first is not lost
    assert steps == [2]
    assert "goes on from step 1" in text


def test_an_unchanged_graph_names_no_change():
    (text,) = queue(steps=1).ui["text"]
    assert "anew" not in text


WITHOUT_EFFECT = {
    "memory": "8 GB",
    "checkpointing": True,
    "offload": True,
    "rows_per_pass": 1,
    "save_every_steps": 3,
    "save_every_minutes": 1.0,
    "keep_checkpoints": 7,
    "preview_every": 5,
    "preview_prompt": "a cat",
    "preview_seed": 4,
}


@cache
def usual_identity() -> str:
    return identity()


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_setting_that_changes_no_result_keeps_the_run(name):
    settings = TrainingSettings(**{name: WITHOUT_EFFECT[name]})
    assert identity(settings=settings) == usual_identity()


def test_a_run_that_ran_out_of_memory_goes_on_with_less_of_it(output):
    model = tiny("sd3")
    with (
        breaking(model, 4, torch.OutOfMemoryError, "backward"),
        pytest.raises(RuntimeError, match="step 3 is kept"),
    ):
        queue(model=model, steps=STEPS)
    with progress() as steps:
        queue(model=model, steps=STEPS, settings=TrainingSettings(rows_per_pass=1))
    assert steps == [4, 5, 6]


@pytest.mark.parametrize("damage", ["cut short", "other version"])
def test_a_damaged_checkpoint_is_passed_over_and_said(damage, output, undisturbed):
    cancelled_at(4, settings=EVERY_STEP)
    (newest,) = output.rglob("step_00000004.safetensors")
    content = newest.read_bytes()
    if damage == "cut short":
        newest.write_bytes(content[: len(content) // 2])
    else:
        newest.write_bytes(content.replace(b'"format":"1"', b'"format":"0"'))
    with progress() as steps:
        (text,) = queue(steps=STEPS, settings=EVERY_STEP).ui["text"]
    assert steps == [4, 5, 6]
    assert "checkpoint step_00000004.safetensors was not used: " in text
    assert "goes on from step 3" in text
    assert results(output) == undisturbed()


def test_a_full_disk_at_a_checkpoint_is_a_warning(output, monkeypatch, undisturbed):
    write = checkpoint.replace_file

    def full(path: Path, *pieces: bytes) -> None:
        if "0004" in path.name or "0005" in path.name:
            raise RuntimeError(f"{path.name!r} needs 1.0 MB, got: No space left on device")
        write(path, *pieces)

    monkeypatch.setattr(checkpoint, "replace_file", full)

    def look(value: int, total: int) -> None:
        if value == 5:
            assert sorted(path.name for path in output.rglob("step_*")) == [
                "step_00000002.safetensors",
                "step_00000003.safetensors",
            ]

    with progress(look) as steps:
        (text,) = queue(steps=STEPS, settings=EVERY_STEP).ui["text"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert "no checkpoint at step 4: 'step_00000004.safetensors' needs 1.0 MB" in text
    assert "no checkpoint at step 5: " in text
    assert results(output) == undisturbed()


def test_a_run_in_use_is_refused_by_name(output):
    cancelled_at(2)
    (folder,) = (output / "pastiche").iterdir()
    with (
        run_lock(folder),
        pytest.raises(RuntimeError, match=rf"got {re.escape(str(folder))} in use by another"),
    ):
        queue(steps=STEPS)
    with progress() as steps:
        queue(steps=STEPS)
    assert steps == [3, 4, 5, 6]


def test_a_learning_rate_that_diverges_keeps_the_last_good_step(output):
    settings = TrainingSettings(optimizer="SGD", save_every_steps=1)
    with pytest.raises(RuntimeError) as caught:
        queue(steps=30, learning_rate=1.0e30, style_start=0.0, settings=settings)
    text = str(caught.value)
    assert "finite" in text
    assert "lower the learning rate" in text
    assert re.search(r"step \d+ is kept|no step was kept", text)
    for path in output.rglob("step_*.safetensors"):
        kept = checkpoint.load_checkpoint(path)
        assert all(bool(tensor.isfinite().all()) for tensor in kept.tensors.values())


@pytest.mark.parametrize("optimizer", ["Adafactor", "SGD"])
def test_other_optimisers_and_averages_go_on_exactly(optimizer, output, undisturbed):
    settings = TrainingSettings(
        optimizer=optimizer, ema_decay=0.9, max_grad_norm=1.0, warmup=3, min_snr_gamma=5.0
    )
    expected = undisturbed(settings=settings)
    cancelled_at(3, settings=settings)
    with progress() as steps:
        queue(steps=STEPS, settings=settings)
    assert steps == [4, 5, 6]
    assert results(output) == expected
