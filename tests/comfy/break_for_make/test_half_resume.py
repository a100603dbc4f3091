"""Halves and what is made of them, broken off: they go on, and end with the same bytes."""

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from half_inputs import b4m, half, joint_inputs, make
from headless import Headless, wait_for
from pack.nodes.trainer.panel import known_runs
from pack.training import TrainingSettings
from pack.training.settings import OPTIMIZERS
from pair_inputs import picture, progress
from resume_case import CANCEL, left_behind, next_picture
from tiny import restore_shared, tiny

Finished = dict[str, object]
STEPS = 5


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    return into(tmp_path / "output", monkeypatch)


def into(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    patch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def finished(output: Path) -> Finished:
    """Return the files of all finished runs and their curves, by their place in the output."""
    places = output.glob("pastiche/*/[0-9]* steps/*.safetensors")
    files = {path: path.read_bytes() for path in places}
    curves = {path: json.loads(path.read_text())["losses"] for path in output.rglob("run.json")}
    return {str(path.relative_to(output)): value for path, value in {**files, **curves}.items()}


@pytest.fixture
def undisturbed(tmp_path) -> Callable[..., Finished]:
    """Return what a node leaves that nothing disturbs."""

    def left(queue: Callable[..., object], **changes) -> Finished:
        with pytest.MonkeyPatch.context() as patch:
            folder = into(tmp_path / "undisturbed", patch)
            queue(**changes)
        restore_shared()
        return finished(folder)

    return left


def cancelled(at: int, queue: Callable[..., object], **changes) -> None:
    """Queue a node and cancel it when its progress bar reaches a step."""

    def cancel(value: int, total: int) -> None:
        if value == at:
            comfy.model_management.interrupt_current_processing()

    with progress(cancel) as steps, pytest.raises(CANCEL):
        queue(**changes)
    assert steps[-1] == at


AUXILIARY = {"auxiliary_images": [picture(seed=n) for n in (7, 8)], "auxiliary_prompts": "a\nb"}
HALVES = [
    ("content", {}),
    ("style", {"gradients": "leaky"}),
    ("content", {"settings": TrainingSettings(optimizer="Scaled AdamW", flip="random")}),
    ("style", {"settings": TrainingSettings(optimizer="LoRA-RITE", accumulation=2)}),
]


@pytest.mark.parametrize(("role", "more"), HALVES)
def test_a_half_that_is_cancelled_goes_on_and_leaves_the_model(role, more, output, undisturbed):
    model = tiny("sd3", inference=True)
    changes = {"model": model, "role": role, "steps": STEPS, **AUXILIARY, **more}
    expected = undisturbed(half, **changes)
    before, painted = left_behind(model), next_picture(model)
    cancelled(2, half, **changes)
    assert left_behind(model) == before
    assert torch.equal(next_picture(model), painted)
    assert finished(output) == {}
    with progress() as steps:
        (text,) = half(**changes).ui["text"]
    assert steps == [3, 4, 5]
    assert "goes on from step 2" in text
    assert finished(output) == expected


def test_more_steps_of_a_half_are_trained_on(output, undisturbed):
    long = undisturbed(half, steps=STEPS, **AUXILIARY)
    half(steps=3, **AUXILIARY)
    with progress() as steps:
        half(steps=STEPS, **AUXILIARY)
    assert steps == [4, 5]
    found = {path: value for path, value in finished(output).items() if f"{STEPS} steps" in path}
    assert found == long


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_joint_training_that_is_cancelled_goes_on(optimizer, output, undisturbed):
    model = tiny("sd3", inference=True)
    halves = [half(model=model).result[0]], [half(role="style", model=model).result[0]]
    tuned = {**joint_inputs(model=model), "steps": STEPS, "optimizer": optimizer}
    joint = partial(make, *halves)
    expected = undisturbed(joint, **tuned)
    before = left_behind(model)
    cancelled(3, joint, **tuned)
    assert left_behind(model) == before
    with progress() as steps:
        (text,) = joint(**tuned).ui["text"]
    assert steps == [4, 5]
    assert "goes on from step 3" in text
    found = {path: value for path, value in finished(output).items() if "test make" in path}
    assert found == expected


@pytest.mark.parametrize("at", [2, 5, 7])
def test_all_stages_go_on_from_the_one_that_was_cancelled(at, output, undisturbed):
    """Three steps of each half and two of making: the bar counts to eight."""
    model = tiny("sd3", inference=True)
    expected = undisturbed(b4m, model=model)
    before = left_behind(model)
    cancelled(at, b4m, model=model)
    assert left_behind(model) == before
    with progress() as steps:
        (text,) = b4m(model=model).ui["text"]
    assert steps == list(range(at + 1, 9))
    assert "goes on from step" in text
    assert finished(output) == expected


def test_another_style_learns_the_content_no_second_time(output):
    b4m()
    with progress() as steps:
        (text,) = b4m(style_images=[picture(seed=4)]).ui["text"]
    assert steps == [4, 5, 6, 7, 8]
    assert text.split("\n\n")[0].count("trained before") == 1


def test_stop_and_keep_finishes_a_stage_and_goes_on_with_the_next(output):
    def stop(value: int, total: int) -> None:
        if value == 2:
            assert known_runs()[-1].press("stop")

    with progress(stop) as steps:
        result = b4m().result
    assert steps == [1, 2, 4, 5, 6, 7, 8]
    assert result[1].metadata["pastiche.steps"] == "2"
    assert len(result[3]["loss"]) == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor SIGKILL")
def test_all_stages_killed_in_the_middle_end_with_the_same_bytes(tmp_path):
    runner = Headless(tmp_path / "base", "b4m")
    try:
        runner.begin(tmp_path / "whole")
        assert runner.wait() == 0
        for stage, name in enumerate(("killed content half", "killed style half", "killed")):
            output = tmp_path / str(stage)
            child = runner.begin(output)
            wait_for(output, f"pastiche/{name}-*/checkpoints/*/step_*.safetensors")
            time.sleep(0.02)
            os.kill(child, signal.SIGKILL)
            assert runner.wait() == signal.SIGKILL
            assert not list(output.glob(f"pastiche/{name}-*/* steps"))
            runner.begin(output)
            assert runner.wait() == 0
            assert "goes on from step" in (output / "text").read_text()
            assert finished(output) == finished(tmp_path / "whole")
    finally:
        runner.end()
