"""The density of a vocabulary against a sum over all of its rows in float64."""

import math

import pytest
import torch
from pack.lora_ops.vocabulary_density import VocabularyDensity


def vocabulary(words: int = 9000, dim: int = 12, spread: float = 0.0137) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(words, dim, generator=generator) * spread
    drawn[:, 0] += 0.6  # CLIP-L has dimensions that lie apart from 0
    drawn[7] *= 40
    return drawn


def oracle(rows: torch.Tensor, words: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """The released loss as its formula has it, a loop over the rows."""
    total = rows.new_zeros(())
    for row in rows.reshape(-1, rows.shape[-1]):
        kernel = torch.exp(-0.5 * ((row - words) / bandwidth) ** 2)
        kernel = kernel / (math.sqrt(2 * math.pi) * bandwidth)
        total = total - torch.log(kernel.mean(dim=0).sum())
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reach", [0.0137, 0.1, 0.8])
def test_value_and_gradient_are_those_of_the_whole_sum(reach, dtype):
    words = vocabulary().to(dtype)
    generator = torch.Generator().manual_seed(5)
    rows = (torch.randn(2, 3, 12, generator=generator) * reach).requires_grad_()
    exact = rows.detach().double().requires_grad_()
    density = VocabularyDensity.of(words, 0.5)
    found, wanted = density.penalty(rows), oracle(exact, words.double(), 0.5)
    (gradient,) = torch.autograd.grad(found, rows)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact)
    assert torch.allclose(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-6)
    # They differ by what the mean row has, which no gradient sees.
    mean = words.double().mean(dim=0, keepdim=True)
    constant = 6 * oracle(mean, words.double(), 0.5)
    off = found.item() - (wanted - constant).item()
    assert abs(off) <= 1e-5 * max(1.0, abs(wanted.item()))


def test_rows_are_drawn_to_the_vocabulary():
    density = VocabularyDensity.of(vocabulary(), 0.5)
    rows = torch.full((1, 12), 0.5, requires_grad=True)
    before = density.penalty(rows)
    (gradient,) = torch.autograd.grad(before, rows)
    assert density.penalty(rows - 0.1 * gradient) < before
    assert before.item() > 0
