"""The keeper: when checkpoints are written, and what is said when one can't be."""

import math
from types import SimpleNamespace

import pytest
import torch
from pack.training import Event, TrainingConfig, train
from pack.training.files.checkpoint import checkpoints, load_checkpoint, step_of
from pack.training.recipes import Single
from pack.training.runs import keeper as keeper_module
from pack.training.runs.keeper import Keeper
from small_denoiser import SmallDenoiser, example

CONFIG = TrainingConfig(steps=7, rank=2, learning_rate=0.02, seed=3)


class Clock:
    """A clock that goes on by half a minute whenever it is read by a step."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(keeper: Keeper, *callbacks, config: TrainingConfig = CONFIG):
    denoiser = SmallDenoiser()
    return train(denoiser, denoiser.sites, Single([example(1)]), config, [keeper, *callbacks])


def kept(folder) -> list[int]:
    return sorted(step_of(path) for path in checkpoints(folder))


def test_checkpoints_come_by_steps(tmp_path):
    run(Keeper(tmp_path, 3, 0.0, keep=9))
    assert kept(tmp_path) == [3, 6]


def test_checkpoints_come_by_minutes(tmp_path):
    clock = Clock()

    def half_a_minute(event: Event) -> None:
        clock.now += 30.0

    run(Keeper(tmp_path, 0, 1.0, keep=9, clock=clock), half_a_minute)
    assert kept(tmp_path) == [3, 5, 7]


def test_one_by_steps_starts_the_minutes_anew(tmp_path):
    clock = Clock()

    def half_a_minute(event: Event) -> None:
        clock.now += 30.0

    run(Keeper(tmp_path, 2, 1.5, keep=9, clock=clock), half_a_minute)
    assert kept(tmp_path) == [2, 4, 6]


def test_none_come_where_none_are_wished_for_but_the_last(tmp_path):
    keeper = Keeper(tmp_path, 0, 0.0, keep=9)
    run(keeper)
    assert kept(tmp_path) == []
    keeper.finish()
    assert kept(tmp_path) == [7]
    assert keeper.kept == 7


def broken_at(step: int):
    def fail(event: Event) -> None:
        if event.step == step:
            raise KeyboardInterrupt

    return fail


def test_a_run_that_breaks_off_is_rescued_at_its_last_step(tmp_path):
    keeper = Keeper(tmp_path, 0, 5.0, keep=9)
    with pytest.raises(KeyboardInterrupt):
        run(keeper, broken_at(4))
    text = keeper.rescue()
    assert text == "step 4 is kept: queue the same graph again to go on from it"
    assert load_checkpoint(checkpoints(tmp_path)[0]).step == 4


def test_nothing_is_said_before_anything_was_trained(tmp_path):
    assert Keeper(tmp_path, 1, 5.0, keep=9).rescue() is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_and_breaks_off_at_once_names_where_it_began(tmp_path):
    assert Keeper(tmp_path, 1, 5.0, keep=9, kept=12).rescue().startswith("step 12 is kept: ")
    assert list(tmp_path.iterdir()) == []


def test_a_half_done_step_is_never_kept(tmp_path):
    keeper = Keeper(tmp_path, 2, 0.0, keep=9)
    run(keeper, config=TrainingConfig(steps=5, rank=2, learning_rate=0.02, seed=3))
    keeper.session.consistent = False
    assert keeper.rescue().startswith("step 4 is kept: ")
    assert kept(tmp_path) == [2, 4]


def test_what_is_no_longer_finite_is_never_kept(tmp_path):
    keeper = Keeper(tmp_path, 2, 0.0, keep=9)
    run(keeper, config=TrainingConfig(steps=5, rank=2, learning_rate=0.02, seed=3))
    with torch.no_grad():
        next(iter(keeper.session.parameters.values())).fill_(math.inf)
    text = keeper.rescue()
    assert text.startswith("step 4 is kept (what is learnt must be finite numbers")
    assert kept(tmp_path) == [2, 4]


def failing(monkeypatch, *steps: int) -> None:
    save = keeper_module.save_checkpoint

    def some_fail(folder, checkpoint, keep):
        if checkpoint.step in steps:
            raise RuntimeError("No space left on device")
        return save(folder, checkpoint, keep)

    monkeypatch.setattr(keeper_module, "save_checkpoint", some_fail)


def test_a_checkpoint_that_fails_is_warned_of_and_training_goes_on(tmp_path, monkeypatch):
    failing(monkeypatch, 4, 6)
    warnings = []
    trained = run(Keeper(tmp_path, 2, 0.0, keep=1, warn=warnings.append))
    assert trained.steps == 7
    assert warnings == [
        "no checkpoint at step 4: No space left on device",
        "no checkpoint at step 6: No space left on device",
    ]
    assert kept(tmp_path) == [2]


def test_a_last_checkpoint_that_fails_is_warned_of(tmp_path, monkeypatch):
    failing(monkeypatch, 7)
    warnings = []
    keeper = Keeper(tmp_path, 0, 0.0, keep=1, warn=warnings.append)
    run(keeper)
    keeper.finish()
    assert warnings == ["the run can't be extended later: No space left on device"]


def test_a_rescue_that_fails_says_what_is_still_there(tmp_path, monkeypatch):
    failing(monkeypatch, 5)
    keeper = Keeper(tmp_path, 2, 0.0, keep=1)
    with pytest.raises(KeyboardInterrupt):
        run(keeper, broken_at(5))
    assert keeper.rescue().startswith("step 4 is kept (No space left on device): queue the same")
    failing(monkeypatch, 1)
    keeper = Keeper(tmp_path / "other", 0, 0.0, keep=1)
    with pytest.raises(KeyboardInterrupt):
        run(keeper, broken_at(1))
    assert keeper.rescue() == "no step was kept (No space left on device)"


def test_a_step_is_written_once(tmp_path, monkeypatch):
    written = []
    save = keeper_module.save_checkpoint
    monkeypatch.setattr(
        keeper_module,
        "save_checkpoint",
        lambda folder, checkpoint, keep: (
            written.append(checkpoint.step) or save(folder, checkpoint, keep)
        ),
    )
    keeper = Keeper(tmp_path, 7, 0.0, keep=1)
    run(keeper, lambda event: keeper.keep_now() if event.step == 7 else None)
    keeper.finish()
    assert written == [7]


def test_the_event_is_all_it_needs(tmp_path):
    keeper = Keeper(tmp_path, 1, 0.0, keep=1)
    session = SimpleNamespace(consistent=False, step=1)
    keeper(Event(1, 2, 0.0, {}, session))
    assert kept(tmp_path) == []
