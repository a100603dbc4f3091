"""Noise levels and their weights against closed forms, in float64 where sums are compared."""

import math

import pytest
import torch
from pack.training import TrainingConfig
from pack.training.noise_levels import min_snr_weights, sample_timestep
from pack.training.randomness import noise_for

GAMMA = 5.0
SIGMAS = torch.tensor([0.01, 0.2, 0.4471, 0.4473, 0.5, 0.9, 0.99, 3.0, 80.0], dtype=torch.float64)
DRAWS = 4000


def wide(sigma):
    return sigma.view(-1, 1, 1, 1)


class Eps:
    """``x = latent + sigma noise``, the model gives the noise."""

    sigmas = SIGMAS

    def noised(self, latent, noise, sigma):
        return latent + wide(sigma) * noise

    def output_scale(self, sigma, like):
        return -wide(sigma).expand_as(like)

    def expected(self, sigma):
        snr = 1 / sigma**2
        return snr.clamp(max=GAMMA) / snr


class V(Eps):
    """The same forward process, the model gives ``v`` of the variance-preserving one."""

    def output_scale(self, sigma, like):
        return (-wide(sigma) / (wide(sigma) ** 2 + 1).sqrt()).expand_as(like)

    def expected(self, sigma):
        snr = 1 / sigma**2
        return snr.clamp(max=GAMMA) / (snr + 1)


class Flow(Eps):
    """``x = (1 - sigma) latent + sigma noise``, the model gives ``noise - latent``."""

    sigmas = SIGMAS[SIGMAS < 1]

    def noised(self, latent, noise, sigma):
        return (1 - wide(sigma)) * latent + wide(sigma) * noise

    def expected(self, sigma):
        snr = ((1 - sigma) / sigma) ** 2
        return snr.clamp(max=GAMMA) * sigma**2


@pytest.mark.parametrize("kind", [Eps, V, Flow])
def test_min_snr_weights_equal_the_closed_form(kind):
    denoiser = kind()
    like = torch.zeros(len(denoiser.sigmas), 4, 2, 3, dtype=torch.float64)
    found = min_snr_weights(denoiser, denoiser.sigmas, like, GAMMA)
    expected = denoiser.expected(denoiser.sigmas)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    # Every noise level below the bound counts as much in the clean latent's space.
    scale = denoiser.output_scale(denoiser.sigmas, like).flatten(1)[:, 0] ** 2
    assert (found / scale).max().item() == pytest.approx(GAMMA)


def shares(**changes) -> torch.Tensor:
    config = TrainingConfig(steps=DRAWS, rank=1, learning_rate=1.0, seed=9, **changes)
    return torch.stack([sample_timestep(config, step, 0) for step in range(DRAWS)]).double()


def distance(found: torch.Tensor, distribution) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the draws' and the wished distribution."""
    steps = torch.arange(1, DRAWS + 1) / DRAWS
    return (distribution(found.sort().values) - steps).abs().max().item()


def normal(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(
    ("changes", "distribution"),
    [
        ({"timesteps": "uniform"}, lambda share: share),
        ({"timesteps": "logit-normal"}, lambda share: normal(torch.logit(share))),
        # The inverse of s u / (1 + (s - 1) u).
        ({"timesteps": "shifted", "timestep_shift": 3.0}, lambda t: t / (3 - 2 * t)),
        ({"timesteps": "shifted", "timestep_shift": 0.5}, lambda t: t / (0.5 + 0.5 * t)),
    ],
)
def test_draws_have_the_wished_distribution(changes, distribution):
    found = shares(**changes)
    assert found.min() >= 0
    assert found.max() < 1
    # 1.95 / sqrt(n) is exceeded by one right distribution in a thousand.
    assert distance(found, distribution) < 1.95 / math.sqrt(DRAWS)


def test_distributions_differ_where_they_should():
    spread = {
        name: shares(timesteps=name).std().item() for name in ("uniform", "logit-normal", "shifted")
    }
    assert spread["logit-normal"] < 0.85 * spread["uniform"]
    assert shares(timesteps="shifted").mean() > 0.6


def test_a_shift_of_one_is_none():
    assert torch.equal(shares(timesteps="shifted", timestep_shift=1.0), shares())


def test_no_draw_is_one_however_large_the_shift(monkeypatch):
    top = torch.tensor(1 - 2**-24)
    monkeypatch.setattr(
        "pack.training.noise_levels.uniform_timestep", lambda seed, step, sample: top
    )
    config = TrainingConfig(
        steps=1, rank=1, learning_rate=1.0, seed=9, timesteps="shifted", timestep_shift=100.0
    )
    assert sample_timestep(config, 0, 0) < 1


def test_noise_offset_moves_each_channel_as_a_whole():
    latent = torch.zeros(2000, 3, 4)
    plain = noise_for(latent, 1, 2, 3)
    moved = noise_for(latent, 1, 2, 3, offset=0.5)
    levels = (moved - plain).flatten(1)
    assert (levels - levels[:, :1]).abs().max() < 1e-6
    assert levels[:, 0].mean().abs().item() < 0.05
    assert levels[:, 0].std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noise_for(latent, 1, 2, 3, offset=0.0), plain)
