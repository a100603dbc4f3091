"""Words kept to their place, against loops over every cell, and the released masked loss."""

import attention_regulariser as oracle
import pytest
import torch
from pack.lora_ops.attention_regulariser import (
    LATENT_CHANNELS,
    RELATIVE_WEIGHT,
    RELEASED_WEIGHT,
    attention_penalty,
)
from pack.training.objective import output_errors


def maps(seed: int = 0, rows: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(rows, 2, *size, generator=generator, dtype=torch.float64)
        for size in ((8, 8), (4, 4), (2, 2))
    ]


def masks(rows: int = 3) -> torch.Tensor:
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    mask[0, :, 2:6, 1:7] = 1
    mask[1, :, :, 3:] = 0.5
    mask[2] = 1  # all of it counts: nothing lies outside
    return mask[:rows]


@pytest.mark.parametrize("fill_mask", [False, True])
def test_the_penalty_is_the_loop_over_all_cells(fill_mask):
    found = attention_penalty(maps(), masks(), fill_mask)
    expected = torch.tensor(oracle.attention_penalty(maps(), masks(), fill_mask))
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)
    assert found[2] == 0


def test_a_split_batch_costs_the_same():
    together = attention_penalty(maps(), masks())
    apart = [
        attention_penalty([one[row : row + 1] for one in maps()], masks()[row : row + 1])
        for row in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(apart))


def test_looking_inside_alone_costs_nothing_and_outside_alone_most():
    mask = masks(1)
    inside = [mask.expand(1, 2, 8, 8).clone()]
    outside = [1 - inside[0]]
    assert attention_penalty(inside, mask).item() == 0
    assert attention_penalty(inside, mask, fill_mask=True).item() == 0
    assert attention_penalty(outside, mask).item() == pytest.approx(2)


def test_the_gradient_moves_attention_inside():
    (found,) = maps(rows=1)[:1]
    found.requires_grad_()
    assert torch.autograd.gradcheck(lambda one: attention_penalty([one], masks(1)), found)
    attention_penalty([found], masks(1)).sum().backward()
    outside = (masks(1) == 0).expand_as(found)
    assert (found.grad[outside] >= 0).sum() >= outside.sum() - 2  # but for the two maxima


def test_no_attention_at_all_is_no_nan():
    assert torch.isfinite(attention_penalty([torch.zeros(1, 2, 4, 4)], torch.zeros(1, 1, 4, 4)))


def test_the_masked_loss_is_the_released_one_over_the_channels():
    predicted = oracle.wave((2, 4, 8, 8), 0.3, 0.1)
    target = oracle.wave((2, 4, 8, 8), 0.2, 0.4)
    mask = torch.zeros(2, 8, 8, dtype=torch.float64)
    mask[0, 2:6, 1:7] = 1
    mask[1, :, 3:] = 1
    released = oracle.released_masked_loss(predicted, target, mask)
    assert released == pytest.approx(5.169865, abs=1e-6)
    ours = output_errors(predicted, target, torch.ones(2, 1, 1, 1), mask[:, None]).mean().item()
    assert ours == pytest.approx(1.292466, abs=1e-6)
    assert ours * LATENT_CHANNELS == pytest.approx(released, rel=1e-6)
    # Both parts of the loss are smaller by the same: the gradient points the same way.
    assert RELATIVE_WEIGHT * LATENT_CHANNELS == RELEASED_WEIGHT
