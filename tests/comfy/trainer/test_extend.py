"""More steps, fewer steps and a stop: what goes on, what starts anew, what is returned."""

from pathlib import Path

import folder_paths
import pytest
import torch
from pack.nodes.trainer.panel import known_runs
from pack.training import TrainingSettings
from pair_inputs import progress, queue
from resume_case import STEPS, cancelled_at, results, tensors_of, undisturbed_run

__all__ = ["undisturbed_run"]  # a fixture


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("packing", ["batched", "sequential"])
def test_a_finished_run_is_extended_and_its_style_starts_where_it_did(packing, output, undisturbed):
    # A third of six steps is two ninths of nine.
    files, losses = undisturbed(packing=packing, steps=9, style_start=0.2222)
    queue(steps=6, style_start=0.3333, packing=packing)
    with progress() as steps:
        (text,) = queue(steps=9, style_start=0.3333, packing=packing).ui["text"]
    assert steps == [7, 8, 9]
    assert "style from step 3 of 9" in text
    found, curves = results(output, 9)
    assert tensors_of(found) == tensors_of(files)
    assert curves == losses
    assert results(output, 6)  # is still there


def test_an_extension_that_is_cancelled_goes_on_too(output, undisturbed):
    files, losses = undisturbed(steps=9, style_start=0.2222)
    queue(steps=6)
    cancelled_at(7, steps=9)
    with progress() as steps:
        queue(steps=9)
    assert steps == [8, 9]
    found, curves = results(output, 9)
    assert (tensors_of(found), curves) == (tensors_of(files), losses)


def test_fewer_steps_learn_their_style(output, undisturbed):
    """A long run that was cancelled before its style began is no start for a short one."""
    cancelled_at(3, steps=30)
    with progress() as steps:
        queue(steps=STEPS)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert results(output) == undisturbed()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_more_steps_of_a_falling_rate_start_anew_and_say_so(schedule, output):
    settings = TrainingSettings(schedule=schedule)
    queue(steps=2, settings=settings)
    with progress() as steps:
        (text,) = queue(steps=3, settings=settings).ui["text"]
    assert steps == [1, 2, 3]
    changed = f"starts anew, since this changed since the last run: steps of the {schedule}"
    assert changed in text
    cancelled_at(2, steps=4, settings=settings)
    with progress() as steps:
        queue(steps=4, settings=settings)
    assert steps == [3, 4]


def test_stop_and_keep_finishes_a_run_until_more_steps_are_wished_for(output, undisturbed):
    def stop(value: int, total: int) -> None:
        if value == 4:
            assert known_runs()[-1].press("stop")

    with progress(stop) as steps:
        stopped = queue(steps=9)
    assert steps == [1, 2, 3, 4]
    assert len(stopped.result[2]["loss"]) == 4
    assert stopped.result[0].metadata["pastiche.steps"] == "4"
    for wished in (9, 7):
        with progress() as steps:
            again = queue(steps=wished)
        assert steps == []
        assert "4 steps" in again.ui["text"][0]
        assert all(torch.equal(stopped.result[0][k], v) for k, v in again.result[0].items())
    with progress() as steps:
        queue(steps=12)
    assert steps == list(range(5, 13))
    # The style began at the third of the nine steps that were wished for at first.
    files, losses = undisturbed(steps=12, style_start=0.25)
    found, curves = results(output, 12)
    assert (tensors_of(found), curves) == (tensors_of(files), losses)
