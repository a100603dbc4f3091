"""Which rows a step has: order, gates, weights, rounds, mirrored pictures."""

import pytest
import torch
from pack.training import Example, Gate
from pack.training.randomness import shuffled_round
from pack.training.recipes import Pair, Single
from small_denoiser import example

FROZEN = Gate(frozen=frozenset({"up"}))


def pairs(count: int) -> list[tuple[Example, Example]]:
    return [(example(2 * n), example(2 * n + 1)) for n in range(count)]


def test_a_pair_step_is_content_then_style_on_shared_noise():
    ((before, after),) = ours = pairs(1)
    content, style = Pair(ours, style_start_step=3).rows(step=3, seed=0)
    assert content.example is before
    assert content.gates == {"content 0": Gate()}
    assert style.example is after
    assert style.gates == {"content 0": FROZEN, "style": Gate()}
    assert content.sample == style.sample == 0
    assert content.weight == style.weight == 1


def test_before_style_start_there_is_no_style_row():
    recipe = Pair(pairs(1), style_start_step=3)
    assert [row.name for row in recipe.rows(2, 0)] == ["content"]
    assert [row.name for row in recipe.rows(3, 0)] == ["content", "style"]


def test_several_noise_levels_share_the_weight():
    rows = Pair(pairs(1), style_start_step=0, samples=4).rows(0, 0)
    assert [(row.name, row.sample) for row in rows] == [
        *[("content", sample) for sample in range(4)],
        *[("style", sample) for sample in range(4)],
    ]
    assert sum(row.weight for row in rows if row.name == "style") == pytest.approx(1)


def test_pairs_come_in_seeded_shuffled_rounds_with_their_own_content():
    ours = pairs(3)
    recipe = Pair(ours, style_start_step=0)
    for step in range(9):
        pair = shuffled_round(5, 3, step)
        content, style = recipe.rows(step, seed=5)
        assert content.example is ours[pair][0]
        assert style.example is ours[pair][1]
        assert set(style.gates) == {f"content {pair}", "style"}
    assert set(recipe.adapters()) == {"style", "content 0", "content 1", "content 2"}


def test_contents_and_style_share_one_basis():
    adapters = Pair(pairs(2), style_start_step=0, basis_seed=9).adapters()
    parts = {name: kind.init((4, 8), 2, torch.Generator()) for name, kind in adapters.items()}
    assert parts["content 0"]["down"] is parts["content 1"]["down"]
    overlap = parts["content 0"]["down"] @ parts["style"]["down"].T
    assert overlap.abs().max() < 1e-6


def test_mirrored_pairs_are_drawn_by_sample_and_stay_together():
    ours, mirrored = pairs(1), [(example(10), example(11))]
    recipe = Pair(ours, style_start_step=0, samples=8, mirrored=mirrored)
    seen = []
    for step in range(6):
        rows = recipe.rows(step, seed=1)
        for content, style in zip(rows[:8], rows[8:], strict=True):
            is_mirrored = content.example is mirrored[0][0]
            before, after = mirrored[0] if is_mirrored else ours[0]
            assert content.example is before
            assert style.example is after
            seen.append(is_mirrored)
    assert 10 < sum(seen) < 38  # of 48, four standard deviations


def test_unequal_latents_are_refused_with_the_pair_named():
    wrong = (example(0), Example(torch.zeros(6), torch.zeros(6)))
    with pytest.raises(ValueError, match=r"equal shape, got \(8,\) and \(6,\) in pair 2"):
        Pair([*pairs(1), wrong], style_start_step=0)


def test_a_missing_mirrored_pair_is_refused():
    with pytest.raises(ValueError, match="got 1 for 2 pairs"):
        Pair(pairs(2), style_start_step=0, mirrored=pairs(1))


def test_single_takes_each_example_once_per_round():
    examples = [example(n) for n in range(6)]
    recipe = Single(examples, batch_size=2)
    rows = [row for step in range(3) for row in recipe.rows(step, seed=4)]
    assert {id(row.example) for row in rows} == {id(one) for one in examples}
    assert [row.sample for row in rows] == [0, 1] * 3
    assert {row.weight for row in rows} == {0.5}


def test_single_draws_for_every_sample_whether_it_is_mirrored():
    ours, mirrored = [example(n) for n in range(3)], [example(10 + n) for n in range(3)]
    recipe = Single(ours, batch_size=4, mirrored=mirrored)
    seen = []
    for step in range(12):
        for row in recipe.rows(step, seed=1):
            picked = shuffled_round(1, 3, 4 * step + row.sample)
            assert row.example is ours[picked] or row.example is mirrored[picked]
            seen.append(row.example is mirrored[picked])
    assert 10 < sum(seen) < 38  # of 48, four standard deviations
    plain = Single(ours, batch_size=4)
    rows = [row for step in range(3) for row in plain.rows(step, seed=1)]
    assert {id(row.example) for row in rows} == {id(one) for one in ours}


def test_single_refuses_no_image_and_a_missing_mirrored_one():
    with pytest.raises(ValueError, match="training needs at least one image, got none"):
        Single([])
    with pytest.raises(ValueError, match="its mirrored one, got 1 for 2 images"):
        Single([example(0), example(1)], mirrored=[example(2)])
