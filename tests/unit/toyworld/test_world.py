"""The toy world stays fixed, and its splits and captions hold what the base was trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from toyworld import world  # noqa: E402
from toyworld.data import base_scene, wide_scene  # noqa: E402
from toyworld.render import render, render_truth  # noqa: E402


def test_world_is_the_recorded_one() -> None:
    record = json.loads(world.RECORD.read_text(encoding="utf-8"))
    assert record["hash"] == world.world_hash()
    assert {"hash": record["hash"], **world.vocabulary()} == record


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    combinations = world.combinations()
    share = sum(world.is_held_out(*c) for c in combinations) / len(combinations)
    assert 0.08 < share < 0.12


def test_base_scenes_hold_nothing_held_out() -> None:
    for seed in range(300):
        for scene in (base_scene(seed), wide_scene(seed)):
            assert scene.style in world.BASE_STYLES
            for thing in scene.things:
                assert thing.kind in world.BASE_CLASSES
                assert thing.mark is None
                assert not world.is_held_out(
                    thing.kind, thing.colour, scene.background, scene.style
                )


def test_held_out_scenes_are_held_out() -> None:
    generator = np.random.RandomState(0)
    for _ in range(20):
        scene = world.random_scene(generator, held_out=True)
        thing = scene.things[0]
        assert world.is_held_out(thing.kind, thing.colour, scene.background, scene.style)


def test_captions_name_what_is_shown() -> None:
    ball, star = world.Thing("ball", "red"), world.Thing("star", "blue", "hat")
    one = world.Scene((ball,), "sand")
    two = world.Scene((ball, star), "night", "comic", width=128)
    assert world.caption(one) == "a red ball on sand"
    assert world.caption(one, generic=True) == "a red thing on sand"
    assert world.caption(two) == (
        "a red ball on the left and a blue star with hat on the right on night in comic style"
    )


@pytest.mark.parametrize("style", world.STYLES)
def test_renders_are_repeatable_and_styles_change_object_and_ground(style: str) -> None:
    scene = world.Scene((world.Thing("heart", "green"),), "brick", style, seed=3)
    picture = render(scene)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render(scene))
    if style != world.PLAIN:
        change = np.abs(picture.astype(int) - render(scene.with_style(world.PLAIN))).mean(axis=2)
        mask = render_truth(scene.with_style(world.PLAIN)).mask > 0.5
        assert change[mask].mean() > 4
        assert change[~mask].mean() > 4


def test_mixed_pictures_take_each_place_from_its_own_style() -> None:
    scene = world.Scene((world.Thing("ball", "red"),), "snow", seed=5)
    mixed = render_truth(scene, "blueprint")
    inside, outside = mixed.mask > 0.99, mixed.mask < 0.01
    assert np.array_equal(mixed.image[inside], render(scene)[inside])
    assert np.array_equal(mixed.image[outside], render(scene.with_style("blueprint"))[outside])


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown style"):
        render(world.Scene((world.Thing("ball", "red"),), "sand", "oil"))
