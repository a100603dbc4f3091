"""The loss in output space, for eps, v and flow, against each target written out."""

import pytest
import torch
from pack.training.objective import output_errors

SIGMA = torch.tensor([0.3, 1.7], dtype=torch.float64).view(2, 1, 1, 1)
FLOW_SIGMA = torch.tensor([0.2, 0.9], dtype=torch.float64).view(2, 1, 1, 1)


def draws() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 4, 5, 5)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64))


def test_eps_error_is_the_noise_error():
    latent, noise, output = draws()
    denoised = latent + SIGMA * noise - SIGMA * output
    expected = (output - noise).square().flatten(1).mean(1)
    errors = output_errors(denoised, latent, -SIGMA)
    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=0)


def test_v_error_is_the_velocity_error():
    latent, noise, output = draws()
    root = (SIGMA**2 + 1).sqrt()
    x = latent + SIGMA * noise
    velocity = noise / root - latent * SIGMA / root  # target of v-prediction
    denoised = x / root**2 - output * SIGMA / root
    expected = (output - velocity).square().flatten(1).mean(1)
    errors = output_errors(denoised, latent, -SIGMA / root)
    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=0)


def test_flow_error_is_the_velocity_error():
    latent, noise, output = draws()
    x = (1 - FLOW_SIGMA) * latent + FLOW_SIGMA * noise
    denoised = x - FLOW_SIGMA * output
    expected = (output - (noise - latent)).square().flatten(1).mean(1)
    errors = output_errors(denoised, latent, -FLOW_SIGMA)
    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=0)


def test_the_error_is_computed_in_fp32():
    latent = torch.zeros(1, 2, 2, dtype=torch.bfloat16)
    errors = output_errors(torch.full_like(latent, 1.0), latent, torch.full_like(latent, -3.0))
    assert errors.dtype == torch.float32
    assert errors.item() == pytest.approx(1 / 9, rel=1e-6)
