"""What every recipe must hold; one row of the matrix per registered one."""

from collections.abc import Callable

import pytest
import torch
from pack.lora_ops import PartlyLearnable
from pack.training import Recipe, TrainingConfig, train
from pack.training.recipes import RECIPES, EdLora, Half, Make, Pair, Single
from small_denoiser import SmallDenoiser, example, said, words

MAKERS: dict[str, Callable[[], Recipe]] = {
    "single": lambda: Single([example(1), example(2), example(3)], batch_size=2),
    "pair": lambda: Pair([(example(1), example(2)), (example(3), example(4))], style_start_step=2),
    "half": lambda: Half("style", [example(1), example(2)], [example(n) for n in (3, 4, 5, 6)]),
    "make": lambda: Make([example(1), example(2)], [example(3)], PartlyLearnable(5)),
    "concept": lambda: EdLora([[said(1), said(1, 1)], [said(2)], [said(3)]], words(), 2),
}
STEPS = 12
matrix = pytest.mark.parametrize("name", MAKERS)


def run(name: str, packing: str = "batched", steps: int = STEPS, learning_rate: float = 0.02):
    denoiser = SmallDenoiser(layers=2)
    config = TrainingConfig(steps, 2, learning_rate, seed=3, packing=packing)
    return train(denoiser, denoiser.sites, MAKERS[name](), config)


def test_every_recipe_has_a_maker_here():
    assert set(MAKERS) == set(RECIPES)


@matrix
def test_rows_follow_from_step_and_seed_alone(name):
    recipe = MAKERS[name]()
    later = recipe.rows(7, 5)
    for step in range(STEPS):
        assert recipe.rows(step, 5) == recipe.rows(step, 5)
    assert recipe.rows(7, 5) == later


@matrix
def test_gates_name_adapters_and_parts_that_exist_and_all_are_trained(name):
    recipe = MAKERS[name]()
    adapters = recipe.adapters()
    trained = set()
    for step in range(STEPS):
        rows = recipe.rows(step, 5)
        assert rows
        for row in rows:
            assert row.weight > 0
            for adapter, gate in row.gates.items():
                trainable = adapters[adapter].trainable()
                assert gate.frozen <= trainable
                if trainable - gate.frozen:
                    trained.add(adapter)
    assert trained == set(adapters)


@matrix
@pytest.mark.parametrize("packing", ["batched", "sequential"])
def test_training_repeats_bit_for_bit(name, packing):
    first, again = run(name, packing), run(name, packing)
    assert first.losses == again.losses
    assert first.embeddings.keys() == again.embeddings.keys()
    assert all(torch.equal(rows, again.embeddings[key]) for key, rows in first.embeddings.items())
    for adapter, layers in first.adapters.items():
        for site, factors in layers.items():
            other = again.adapters[adapter][site]
            assert torch.equal(factors.up, other.up)
            assert torch.equal(factors.down, other.down)


@matrix
def test_training_lowers_the_loss(name):
    losses = run(name, steps=150).losses
    for curve in (losses[row] for row in losses if row != "loss"):
        third = len(curve) // 3
        assert sum(curve[-third:]) < 0.9 * sum(curve[:third])


@matrix
def test_frozen_parts_stay_bit_identical_and_learnt_ones_move(name):
    recipe = MAKERS[name]()
    trained = run(name)
    for adapter, kind in recipe.adapters().items():
        for factors in trained.adapters[adapter].values():
            assert factors.up.any()
            if "down" not in kind.trainable():
                drawn = kind.init((8, 8), 2, torch.Generator())["down"]
                assert torch.equal(factors.down, drawn)
