"""LoRA-RITE's step: the oracle, invariance, singular factors."""

import lora_rite as oracle
import pytest
import torch
from pack.lora_ops.lora_rite import RiteState, corrected_decay, rite_steps, unmagnified
from torch import Tensor

BETAS = (0.9, 0.99)
RATE = 0.05


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def trajectory(up: Tensor, down: Tensor, target: Tensor, steps: int = 5) -> list[Tensor]:
    states: list[RiteState | None] = [None, None]
    products = []
    for _ in range(steps):
        gradient = up @ down - target
        parts, _ = unmagnified([gradient @ down.T, gradient.T @ up], [down, up.T])
        (up_step, up_state), (down_step, down_state) = rite_steps(parts, states, betas=BETAS)
        states = [up_state, down_state]
        up, down = up - RATE * up_step, down - RATE * down_step.T
        products.append(up @ down)
    return products


UP, DOWN, TARGET = random(8, 3, seed=0), random(3, 7, seed=1), random(8, 7, seed=2)


def test_five_steps_equal_the_oracle():
    slow = oracle.LoraRite(UP, DOWN, RATE, BETAS)
    for product in trajectory(UP, DOWN, TARGET):
        slow.step(slow.up @ slow.down - TARGET)
        torch.testing.assert_close(product, slow.up @ slow.down, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_five_steps_are_the_same_for_all_factors_of_a_product(seed):
    mixing = random(3, 3, seed=seed) * 3
    other = trajectory(UP @ mixing, torch.linalg.inv(mixing) @ DOWN, TARGET)
    for product, again in zip(trajectory(UP, DOWN, TARGET), other, strict=True):
        torch.testing.assert_close(product, again, rtol=0, atol=1e-6)


def test_the_oracle_is_as_independent():
    mixing = random(3, 3, seed=6)
    slow = oracle.LoraRite(UP, DOWN, RATE, BETAS)
    other = oracle.LoraRite(UP @ mixing, torch.linalg.inv(mixing) @ DOWN, RATE, BETAS)
    for _ in range(5):
        slow.step(slow.up @ slow.down - TARGET)
        other.step(other.up @ other.down - TARGET)
    torch.testing.assert_close(slow.up @ slow.down, other.up @ other.down, rtol=0, atol=1e-6)


def test_the_first_step_equalises_all_directions():
    parts, _ = unmagnified([random(8, 3, seed=7)], [DOWN])
    ((step, state),) = rite_steps(parts, [None], betas=BETAS)
    sizes = torch.linalg.svdvals(step @ DOWN)[:3]
    torch.testing.assert_close(sizes, torch.full((3,), 8**0.5, dtype=torch.float64))
    assert state.steps == 1
    assert state.escaped == 0


def test_what_the_basis_turns_away_from_is_added_back():
    part = unmagnified([random(8, 3, seed=7)], [DOWN])[0]
    ((_, state),) = rite_steps(part, [None], betas=BETAS)
    other = random(3, 7, seed=8)  # another row space
    ((_, turned),) = rite_steps(
        unmagnified([random(8, 3, seed=9)], [other])[0], [state], betas=BETAS
    )
    ((_, still),) = rite_steps(part, [state], betas=BETAS)
    assert turned.escaped > 0
    assert still.escaped == pytest.approx(0, abs=1e-12)


def test_a_basis_has_orthonormal_rows_and_ranks_may_differ():
    others = [DOWN, random(2, 9, seed=3), random(3, 5, seed=4)]
    gradients = [random(4, len(other), seed=5) for other in others]
    parts, singular = unmagnified(gradients, others)
    assert singular == 0
    for part, other, gradient in zip(parts, others, gradients, strict=True):
        unit = torch.eye(len(other), dtype=torch.float64)
        torch.testing.assert_close(part.basis @ part.basis.T, unit)
        torch.testing.assert_close(part.root @ other, part.basis)
        full = gradient @ torch.linalg.inv(other @ other.T) * gradient
        assert part.gradient.square().sum().item() == pytest.approx(full.sum().item())
    together = rite_steps(parts, [None] * 3, betas=BETAS)
    for number, part in enumerate(parts):
        ((alone, _),) = rite_steps([part], [None], betas=BETAS)
        torch.testing.assert_close(together[number][0], alone)


def test_a_zero_factor_gives_no_step_and_no_trouble():
    parts, singular = unmagnified([torch.zeros(7, 3)], [torch.zeros(3, 8)])
    ((step, state),) = rite_steps(parts, [None], betas=BETAS)
    assert singular == 1
    assert not step.any()
    assert state.second.isfinite().all()


def test_corrected_decays_make_the_average_of_equal_values_that_value():
    average = 0.0
    for steps in range(4):
        keep = corrected_decay(0.9, steps)
        average = keep * average + (1 - keep) * 5.0
        assert average == pytest.approx(5.0)
