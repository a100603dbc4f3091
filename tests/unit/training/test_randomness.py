"""Draws follow from (seed, step, sample) and from nothing else."""

import torch
from pack.training.randomness import (
    coin,
    generator_for,
    noise_for,
    shuffled_round,
    uniform_timestep,
)

LATENT = torch.zeros(4, 8, 8)


def test_draws_repeat_whatever_was_drawn_before():
    noise, share = noise_for(LATENT, 7, 3, 1), uniform_timestep(7, 3, 1)
    torch.randn(100)
    noise_for(LATENT, 8, 0, 0)
    assert torch.equal(noise, noise_for(LATENT, 7, 3, 1))
    assert torch.equal(share, uniform_timestep(7, 3, 1))


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    noise_for(LATENT, 7, 3, 1)
    uniform_timestep(7, 3, 1)
    shuffled_round(7, 5, 3)
    coin(7, 3, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_seed_step_and_sample_each_change_the_draw():
    places = [(7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2)]
    noises = [noise_for(LATENT, *place) for place in places]
    shares = {uniform_timestep(*place).item() for place in places}
    assert len(shares) == 4
    for i, one in enumerate(noises):
        for other in noises[:i]:
            assert not torch.equal(one, other)


def test_the_place_is_not_a_sum_of_its_parts():
    first = torch.rand((), generator=generator_for(1, "a", 23))
    second = torch.rand((), generator=generator_for(1, "a2", 3))
    assert first != second


def test_noise_is_standard_normal_and_shares_are_uniform():
    noise = torch.cat([noise_for(torch.zeros(1000), 0, step, 0) for step in range(20)])
    assert abs(noise.mean().item()) < 0.03
    assert abs(noise.std().item() - 1) < 0.03
    shares = torch.stack([uniform_timestep(0, step, 0) for step in range(2000)])
    assert shares.min() >= 0
    assert shares.max() < 1
    counts = torch.histc(shares, 10, 0, 1)
    assert (counts - 200).abs().max() < 70  # five standard deviations


def test_every_round_takes_each_item_once():
    for round_ in range(5):
        picks = [shuffled_round(3, 4, round_ * 4 + step) for step in range(4)]
        assert sorted(picks) == [0, 1, 2, 3]
    orders = {tuple(shuffled_round(3, 4, r * 4 + s) for s in range(4)) for r in range(10)}
    assert len(orders) > 1


def test_the_coin_is_fair():
    heads = sum(coin(1, step, 0) for step in range(1000))
    assert 420 < heads < 580  # five standard deviations
