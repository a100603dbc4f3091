"""Smaller factors for the same change, and what a smaller rank costs."""

import pytest
import torch
from least_squares import squared_error, wave
from pack.lora_ops import LowRank, delta
from pack.lora_ops.truncation import factorised, refactored, truncated


def random_factors(out: int, width: int, rank: int, alpha: float | None = 2.0) -> LowRank:
    generator = torch.Generator().manual_seed(out * 100 + rank)
    down = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(down, up, alpha)


@pytest.mark.parametrize(
    ("out", "width", "rank", "wanted"), [(5, 12, 9, 5), (12, 5, 9, 5), (6, 6, 3, 3), (4, 4, 1, 1)]
)
def test_refactored_is_exact_and_no_wider_than_the_layer(out, width, rank, wanted):
    factors = random_factors(out, width, rank)
    found = refactored(factors)
    assert found.rank == wanted
    torch.testing.assert_close(delta(found), delta(factors))
    # both factors carry their part of the magnitude
    assert float(found.down.norm()) == pytest.approx(float(found.up.norm()))


def test_refactored_drops_directions_that_are_zero():
    once = random_factors(8, 9, 2)
    twice = LowRank(torch.cat([once.down] * 3), torch.cat([once.up] * 3, 1))
    assert refactored(twice).rank == 2
    torch.testing.assert_close(delta(refactored(twice)), delta(twice))
    for rank in (0, 3):
        nothing = refactored(LowRank(torch.zeros(rank, 9), torch.zeros(8, rank)))
        assert nothing.rank == 1
        assert delta(nothing).equal(torch.zeros(8, 9))


def test_refactored_keeps_a_convolution_a_convolution():
    flat = random_factors(4, 12, 7)
    shaped = LowRank(flat.down.view(7, 3, 2, 2), flat.up[..., None, None], flat.alpha)
    found = refactored(shaped)
    assert found.down.shape == (4, 3, 2, 2)
    assert found.up.shape == (4, 4, 1, 1)
    torch.testing.assert_close(delta(found), delta(shaped))


def test_truncation_is_the_best_of_its_rank_on_the_activations():
    rows = wave(40, 12, rate=0.77, phase=0.3) * torch.linspace(2, 0.01, 12, dtype=torch.float64)
    rows = rows + 0.1 * torch.sin(wave(40, 12, rate=3.1, phase=0.2) * 9)
    factors = random_factors(6, 12, 5)
    whole = delta(factors)
    s = torch.linalg.svdvals(rows @ whole.mT)
    for rank in (1, 2, 4):
        found = truncated(factors, rows.mT @ rows, rank=rank)
        assert found.factors.rank == rank
        best = float((s[rank:] ** 2).sum())  # Eckart and Young, on the layer's outputs
        assert found.loss == pytest.approx(best, rel=1e-9)
        assert squared_error(delta(found.factors), whole, rows) == pytest.approx(best, rel=1e-9)
        assert found.kept == pytest.approx(1 - best / float((s**2).sum()), rel=1e-9)


def test_the_damping_counts_as_inputs_of_every_direction():
    rows = wave(20, 12, rate=0.77, phase=0.3)
    factors = random_factors(6, 12, 5)
    found = truncated(factors, rows.mT @ rows, damping=0.3, rank=2)
    extra = torch.cat([rows, 0.3**0.5 * torch.eye(12, dtype=torch.float64)])
    wanted = squared_error(delta(found.factors), delta(factors), extra)
    assert found.loss == pytest.approx(wanted, rel=1e-9)
    assert found.loss > 0.01


def test_a_rank_is_kept_to_where_more_costs_nothing():
    rows = wave(20, 12, rate=0.77, phase=0.3)  # of rank 2
    found = truncated(random_factors(6, 12, 5), rows.mT @ rows, rank=3)
    assert found.factors.rank <= 3
    assert found.loss == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(
        rows @ delta(found.factors).mT, rows @ delta(random_factors(6, 12, 5)).mT
    )
    nothing = truncated(LowRank(torch.zeros(3, 12), torch.zeros(6, 3)), rows.mT @ rows, energy=0.9)
    assert (nothing.kept, nothing.loss, nothing.factors.rank) == (1.0, 0.0, 1)


def test_an_energy_share_takes_the_smallest_rank_that_holds_it():
    gram = torch.eye(12, dtype=torch.float64)
    factors = random_factors(6, 12, 5)
    kept = [truncated(factors, gram, rank=rank).kept for rank in range(1, 6)]
    assert kept == sorted(kept)
    for rank, share in enumerate(kept, 1):
        assert truncated(factors, gram, energy=share - 1e-9).factors.rank == rank
    whole = truncated(factors, gram, energy=1.0)
    torch.testing.assert_close(delta(whole.factors), delta(factors))
    assert whole.loss == 0.0


def test_a_rank_above_the_change_keeps_all_of_it():
    found = truncated(random_factors(6, 12, 5), torch.eye(12, dtype=torch.float64), rank=99)
    torch.testing.assert_close(delta(found.factors), delta(random_factors(6, 12, 5)))
    assert (found.factors.rank, found.kept, found.loss) == (5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"energy": 0.0}, "energy must lie above 0 and at most at 1, got 0"),
        ({"energy": 1.5}, "energy must lie above 0 and at most at 1, got 1.5"),
        ({}, "either a rank or an energy"),
        ({"rank": 1, "energy": 0.5}, "either a rank or an energy"),
    ],
)
def test_a_bad_limit_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        truncated(random_factors(6, 12, 5), torch.eye(12, dtype=torch.float64), **settings)


@pytest.mark.parametrize("shape", [(6, 12), (6, 4, 3, 3)])
def test_a_dense_change_is_factorised_with_what_it_keeps(shape):
    generator = torch.Generator().manual_seed(3)
    change = torch.randn(shape, generator=generator)
    factors, kept = factorised(change, energy=1.0, most=99)
    torch.testing.assert_close(delta(factors), change)
    assert (factors.rank, kept) == (6, pytest.approx(1.0))
    factors, kept = factorised(change, energy=0.7, most=99)
    left = (delta(factors) - change).square().sum() / change.square().sum()
    assert factors.rank < 6
    assert kept == pytest.approx(1.0 - float(left), abs=1e-6)
    assert kept >= 0.7
    factors, kept = factorised(change, energy=1.0, most=2)
    assert factors.rank == 2
    assert kept < 1.0
    nothing, kept = factorised(torch.zeros(shape), energy=0.9, most=4)
    assert (delta(nothing).abs().max(), nothing.shape, kept) == (0.0, shape, 1.0)
