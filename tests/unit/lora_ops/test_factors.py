"""Low-rank factors: scale, delta and the forward that never forms it."""

import pytest
import torch
import torch.nn.functional as F
from pack.lora_ops import LowRank, delta, difference, forward_delta, norm
from pack.lora_ops.factors import kaiming_down


def random_factors(*shape: int, rank: int = 3, alpha: float | None = None) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    ones = (1,) * (len(shape) - 2)
    down = torch.randn(rank, *shape[1:], generator=generator, dtype=torch.float64)
    up = torch.randn(shape[0], rank, *ones, generator=generator, dtype=torch.float64)
    return LowRank(down, up, alpha)


def test_delta_is_the_scaled_product_written_out():
    factors = random_factors(4, 5, alpha=1.5)
    change = delta(factors)
    for row in range(4):
        for column in range(5):
            product = sum(factors.up[row, r] * factors.down[r, column] for r in range(3))
            assert change[row, column].item() == pytest.approx(product.item() * 0.5, abs=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 3)])
def test_norm_and_difference_need_no_delta(shape):
    one, other = random_factors(*shape, alpha=1.5), random_factors(*shape, rank=2)
    assert norm(one) == pytest.approx(float(delta(one).norm()), rel=1e-12)
    assert norm(LowRank(one.down[:0], one.up[:, :0])) == 0.0
    found = difference(one, other)
    assert found.rank == 5
    torch.testing.assert_close(delta(found), (delta(one) - delta(other)).flatten(1))


@pytest.mark.parametrize("alpha", [None, 3.0, 0.75])
def test_linear_forward_equals_the_delta(alpha):
    factors = random_factors(4, 5, alpha=alpha)
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(forward_delta(x, factors), x @ delta(factors).T)


@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
        {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)},
        {"stride": (1, 1), "padding": (2, 2), "dilation": (2, 2)},
    ],
)
def test_convolution_forward_equals_the_delta(geometry):
    factors = random_factors(4, 5, 3, 3, alpha=1.0)
    x = torch.randn(2, 5, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = F.conv2d(x, delta(factors), **geometry)
    torch.testing.assert_close(forward_delta(x, factors, **geometry), expected)


def test_shares_are_those_of_each_rank_at_each_token():
    factors = random_factors(4, 5, alpha=1.5)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    shares = torch.rand(7, factors.rank, generator=generator, dtype=torch.float64)
    found = forward_delta(x, factors, rank_weights=shares)
    expected = torch.zeros_like(found)
    for token in range(7):
        for rank in range(factors.rank):
            hidden = x[:, token] @ factors.down[rank]
            change = hidden[:, None] * factors.up[:, rank] * factors.scale
            expected[:, token] += shares[token, rank] * change
    torch.testing.assert_close(found, expected)


def test_shares_of_a_convolution_are_those_of_each_rank_at_each_place():
    factors = random_factors(4, 5, 3, 3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 6, 8, generator=generator, dtype=torch.float64)
    shares = torch.rand(factors.rank, 6, 8, generator=generator, dtype=torch.float64)
    found = forward_delta(x, factors, padding=(1, 1), rank_weights=shares)
    expected = torch.zeros_like(found)
    for rank in range(factors.rank):
        one = LowRank(factors.down[rank, None], factors.up[:, rank, None])
        expected += shares[rank] * factors.scale * F.conv2d(x, delta(one), padding=1)
    torch.testing.assert_close(found, expected)


def test_dtype_follows_x_and_gradient_keeps_the_factors_dtype():
    up = torch.nn.Parameter(torch.ones(4, 2))
    change = forward_delta(torch.ones(3, 5, dtype=torch.bfloat16), LowRank(torch.ones(2, 5), up))
    assert change.dtype == torch.bfloat16
    change.sum().backward()
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


def test_factors_that_share_no_rank_are_refused():
    with pytest.raises(ValueError, match=r"share the rank axis, got \(2, 5\) and \(4, 3\)"):
        LowRank(torch.ones(2, 5), torch.ones(4, 3))


def test_kaiming_down_stays_in_its_bound():
    down = kaiming_down((7, 4, 3, 3), 5, torch.Generator().manual_seed(0))
    assert down.shape == (5, 4, 3, 3)
    assert down.abs().max() <= 1 / 6
    assert down.std() == pytest.approx(1 / 6 / 3**0.5, rel=0.1)
