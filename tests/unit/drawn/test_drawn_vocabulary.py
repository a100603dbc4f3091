"""The drawn world's words, splits and captions, which need no drawing."""

import json
import re

import pytest
from drawn import vocabulary
from drawn.fingerprint import RECORD, SAMPLES
from drawn.scenes import (
    Scene,
    Thing,
    any_scene,
    article,
    caption,
    held_out_combination,
    random_scene,
)

SEEDS = range(400)


def test_the_record_holds_the_words_as_they_are() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[0-9a-f]{16}", record["hash"])
    assert record["learnt_things"] == vocabulary.LEARNT_THINGS
    assert record["held_out_things"] == vocabulary.HELD_OUT_THINGS
    assert record["held_out_sets"] == list(vocabulary.HELD_OUT_SETS)
    assert record["held_out_looks"] == vocabulary.HELD_OUT_LOOKS
    assert record["marks"] == list(vocabulary.MARKS)
    assert SAMPLES >= 50


def test_the_world_is_as_large_as_its_aims_need() -> None:
    assert len(vocabulary.LEARNT_THINGS) >= 150
    assert len(vocabulary.HELD_OUT_THINGS) == 40
    assert len(vocabulary.MARKS) == 8
    assert len(vocabulary.LEARNT_LOOKS) == 10
    assert sorted(vocabulary.HELD_OUT_LOOKS) == ["edges", "form", "palette", "texture"]
    drawings = list(vocabulary.THINGS.values())
    assert len(set(drawings)) == len(drawings)


def test_training_scenes_hold_nothing_that_is_held_out() -> None:
    for seed in SEEDS:
        for wide in (False, True):
            scene = random_scene(seed, wide=wide)
            assert scene.style in vocabulary.LEARNT_STYLES
            for thing in scene.things:
                assert thing.name in vocabulary.LEARNT_THINGS
                assert thing.mark is None
                assert not held_out_combination(thing.name, scene.style, scene.ground)


def test_held_out_combinations_are_about_a_tenth_and_learnt_in_every_part() -> None:
    scenes = [random_scene(seed, held_out=True) for seed in SEEDS]
    for scene in scenes:
        assert held_out_combination(scene.things[0].name, scene.style, scene.ground)
    total = held = 0
    for name in vocabulary.LEARNT_THINGS:
        for style in vocabulary.LEARNT_STYLES:
            flags = [held_out_combination(name, style, g) for g in vocabulary.GROUNDS]
            held, total = held + sum(flags), total + len(flags)
            assert not all(flags)
    assert 0.07 < held / total < 0.13


def test_scenes_of_the_whole_world_reach_every_part() -> None:
    scenes = [any_scene(seed) for seed in range(4000)]
    assert {s.style for s in scenes} == set(vocabulary.STYLES)
    assert {s.things[0].name for s in scenes} == set(vocabulary.THINGS)
    assert {s.things[0].mark for s in scenes} == {None, *vocabulary.MARKS}


def test_wide_canvases_hold_two_things_and_at_times_one_or_three() -> None:
    counts = [len(random_scene(seed, wide=True).things) for seed in range(1000)]
    assert 0.5 < counts.count(2) / 1000 < 0.7
    assert 0.2 < counts.count(1) / 1000 < 0.4
    assert 0.05 < counts.count(3) / 1000 < 0.15


def test_the_plain_set_carries_no_style_words_and_every_other_style_does() -> None:
    for seed in SEEDS:
        scene = random_scene(seed)
        text = caption(scene, seed)
        words = [style for style in vocabulary.LEARNT_STYLES if f"{style} style" in text]
        assert words == ([] if scene.style == "plain" else [scene.style])


def test_no_style_ground_or_colour_shares_a_word_with_a_thing() -> None:
    words = {word for name in vocabulary.THINGS for word in name.split()}
    phrases = [p for some in vocabulary.GROUNDS.values() for p in some]
    others = {word for phrase in phrases for word in phrase.split()}
    assert not words & {*vocabulary.STYLES, *vocabulary.COLOURS, *others}


def test_captions_name_no_thing_that_is_not_there() -> None:
    for seed in SEEDS:
        scene = random_scene(seed, wide=seed % 2 == 0)
        text, named = caption(scene, seed), {t.name for t in scene.things}
        for other in vocabulary.LEARNT_THINGS:
            if not any(other in name for name in named):
                assert not re.search(rf"\b{other}\b", text)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (Scene((Thing("fox"),), "meadow"), "a fox on a meadow"),
        (Scene((Thing("fox", "blue"),), "sand", "pixel"), "a blue fox on sand in pixel style"),
        (Scene((Thing("owl"),), "night"), "an owl at night"),
        (
            Scene((Thing("grapes"), Thing("car", "red")), "snow", "soft", wide=True),
            "grapes and a red car on snow in soft style",
        ),
    ],
)
def test_the_plainest_caption(scene: Scene, expected: str) -> None:
    assert caption(scene) == expected


def test_articles_fit_their_words() -> None:
    assert article("umbrella") == "an umbrella"
    assert article("scissors") == "scissors"
    assert article("red umbrella") == "a red umbrella"
    assert article("bowling pins") == "bowling pins"
