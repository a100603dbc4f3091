"""The learning rate's course."""

import math

import pytest
from pack.training import TrainingConfig
from pack.training.schedule import scheduled_rate


def rates(schedule: str, warmup: int = 0, steps: int = 8) -> list[float]:
    config = TrainingConfig(
        steps=steps, rank=1, learning_rate=0.5, seed=0, schedule=schedule, warmup=warmup
    )
    return [scheduled_rate(0.5, step, config) for step in range(steps)]


def test_constant_stays():
    assert rates("constant") == [0.5] * 8


def test_linear_falls_evenly_towards_nothing():
    assert rates("linear") == pytest.approx([0.5 * (8 - step) / 8 for step in range(8)])


def test_cosine_falls_in_half_a_wave():
    expected = [0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates("cosine") == pytest.approx(expected)
    assert rates("cosine")[4] == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_evenly_and_the_rest_follows(schedule):
    found = rates(schedule, warmup=4, steps=12)
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert found[4:] == pytest.approx(rates(schedule))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [1, 8, 20])
def test_no_rate_is_nothing_or_above_the_wish(schedule, warmup):
    assert all(0 < rate <= 0.5 for rate in rates(schedule, warmup))


def test_only_a_constant_rate_can_be_extended():
    for schedule, depends in (("constant", False), ("linear", True), ("cosine", True)):
        config = TrainingConfig(steps=8, rank=1, learning_rate=0.5, seed=0, schedule=schedule)
        assert config.depends_on_total is depends
    short, long = rates("constant", 3, 6), rates("constant", 3, 9)
    assert long[:6] == short
