"""Riemannian gradients: golden numbers, the oracle, invariance, damping, low precision."""

import math

import preconditioner as oracle
import pytest
import torch
from pack.lora_ops.preconditioner import (
    Damping,
    FactorGradients,
    gram,
    inverse_grams,
    riemannian_gradients,
)
from torch import Tensor

NONE = Damping(0.0)


def waves(shape: tuple[int, int], shift: float) -> Tensor:
    """sin(shift + 0.7 k) in the order of rows: what the golden numbers were computed from."""
    count = math.prod(shape)
    return torch.sin(shift + 0.7 * torch.arange(count, dtype=torch.float64)).view(shape)


UP, DOWN, G = waves((4, 2), 0.3), waves((2, 5), 1.1), waves((4, 5), 2.0)
TARGET = waves((4, 5), 5.0)


def scaled(up: Tensor, down: Tensor, gradient: Tensor, damping: Damping) -> tuple[Tensor, Tensor]:
    layer = FactorGradients(down, up, up.T @ gradient, gradient @ down.T)
    ((of_down, of_up),) = riemannian_gradients([layer], damping).gradients
    return of_up, of_down


def change(up: Tensor, down: Tensor, damping: Damping, rate: float = 0.1) -> Tensor:
    of_up, of_down = scaled(up, down, G, damping)
    return (up - rate * of_up) @ (down - rate * of_down) - up @ down


# Golden numbers below: computed once with numpy in float64 from the formulas of Zhang & Pilanci
# 2024, arXiv:2402.02347, apart from this code.
def close(value: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        value, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=5e-9
    )


def test_gradients_equal_the_golden_numbers():
    of_up, of_down = scaled(UP, DOWN, G, NONE)
    close(of_up[0], [-1.46957246, -2.23307971])
    close(of_up[3], [2.84774545, 2.62078815])
    close(of_down[0], [-0.60355887, -0.72523183, -0.50581692, -0.04850841, 0.43161436])
    assert of_up.square().sum().item() == pytest.approx(49.9392573, rel=1e-8)
    assert of_down.square().sum().item() == pytest.approx(2.11245099, rel=1e-8)

    of_up, of_down = scaled(UP, DOWN, G, Damping(0.01, relative=False))
    close(of_up[0], [-1.35125788, -2.11674990])
    assert of_up.square().sum().item() == pytest.approx(43.8534245, rel=1e-8)
    assert of_down[0, 0].item() == pytest.approx(-0.58982755, rel=1e-7)
    assert of_down.square().sum().item() == pytest.approx(2.01460069, rel=1e-8)


def test_a_step_is_the_projected_full_gradient_up_to_second_order():
    rate = 0.1
    of_up, of_down = scaled(UP, DOWN, G, NONE)
    step = change(UP, DOWN, NONE, rate)
    rows = DOWN.T @ torch.linalg.inv(DOWN @ DOWN.T) @ DOWN
    columns = UP @ torch.linalg.inv(UP.T @ UP) @ UP.T
    first_order = -rate * (G @ rows + columns @ G)
    assert step.norm().item() == pytest.approx(0.3701845888, rel=1e-9)
    assert first_order.norm().item() == pytest.approx(0.3594980440, rel=1e-9)
    close(step[0], [-0.11726396, -0.06669275, 0.01524511, 0.09001295, 0.12244630])
    second_order = rate**2 * of_up @ of_down
    assert second_order.norm().item() == pytest.approx(0.0146282459, rel=1e-8)
    torch.testing.assert_close(step - first_order, second_order, atol=1e-14, rtol=0)


SKEWED = torch.tensor([[2.0, 0.5], [-0.3, 0.25]], dtype=torch.float64)
TURN = torch.tensor(
    [[math.cos(0.6), -math.sin(0.6)], [math.sin(0.6), math.cos(0.6)]], dtype=torch.float64
)


@pytest.mark.parametrize(
    ("mixing", "damping", "low", "high"),
    [
        (SKEWED, NONE, 0, 1e-13),
        (SKEWED, Damping(0.01, relative=False), 0.0057, 0.0059),
        (TURN, Damping(0.01, relative=False), 0, 1e-13),
        (10 * torch.eye(2).double(), Damping(0.01, relative=False), 0.0793, 0.0795),
        (10 * torch.eye(2).double(), Damping(0.01), 0, 1e-13),
        (10 * TURN, Damping(0.01), 0, 1e-13),
    ],
)
def test_a_step_depends_on_the_factors_only_as_damping_says(mixing, damping, low, high):
    other = change(UP @ mixing, torch.linalg.inv(mixing) @ DOWN, damping)
    difference = (other - change(UP, DOWN, damping)).abs().max()
    assert low <= difference <= high


def test_plain_descent_depends_on_the_factors():
    def plain(up: Tensor, down: Tensor) -> Tensor:
        return (up - 0.1 * G @ down.T) @ (down - 0.1 * up.T @ G) - up @ down

    assert (plain(10 * UP, DOWN / 10) - plain(UP, DOWN)).abs().max() == pytest.approx(6.2, abs=0.05)


@pytest.mark.parametrize(
    ("rate", "damping", "moved"),
    [(0.1, 0.0, 2.073), (0.1, 0.01, 0.673), (1e-3, 0.0, 2.301), (1e-3, 1e-6, 0.730),
     (1e-3, 0.01, 0.0018)],
)  # fmt: skip
def test_a_zero_start_jumps_at_the_second_step_unless_damped(rate, damping, moved):
    up, down, damping = torch.zeros(4, 2).double(), DOWN, Damping(damping, relative=False)
    of_up, of_down = scaled(up, down, up @ down - TARGET, damping)
    assert not of_down.any()
    if damping.amount == 0.01:
        assert of_up.norm().item() == pytest.approx(6.339117, rel=1e-6)
    assert down.norm().item() == pytest.approx(2.3037, abs=1e-4)
    up = up - rate * of_up
    _, of_down = scaled(up, down, up @ down - TARGET, damping)
    assert (rate * of_down).norm().item() == pytest.approx(moved, rel=2e-2)


def test_the_oracle_agrees_with_the_golden_of_the_sequential_variant():
    up, down, gradient = UP.tolist(), DOWN.tolist(), G.tolist()
    after = torch.tensor(oracle.gauss_seidel_down_step(up, down, gradient, 0.1))
    _, jacobi = oracle.preconditioned(up, down, gradient)
    difference = (after + 0.1 * torch.tensor(jacobi)).abs().max().item()
    assert difference == pytest.approx(0.010585, rel=1e-4)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("amount", [0.0, 0.3])
def test_many_layers_of_several_ranks_equal_the_oracle(amount, relative):
    generator = torch.Generator().manual_seed(0)
    layers, expected = [], []
    for out, rank, width in ((7, 3, 9), (6, 2, 5), (8, 3, 4), (5, 1, 6)):
        up, down, g = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((out, rank), (rank, width), (out, width))
        )
        layers.append(FactorGradients(down, up, up.T @ g, g @ down.T))
        expected.append(
            oracle.preconditioned(up.tolist(), down.tolist(), g.tolist(), amount, relative)
        )
    found = riemannian_gradients(layers, Damping(amount, relative))
    total = 0.0
    for layer, (of_down, of_up), (up, down) in zip(layers, found.gradients, expected, strict=True):
        torch.testing.assert_close(of_up, torch.tensor(up, dtype=torch.float64))
        torch.testing.assert_close(of_down, torch.tensor(down, dtype=torch.float64))
        total += ((of_up * layer.grad_up).sum() + (of_down * layer.grad_down).sum()).item()
    assert found.metric_norm.item() == pytest.approx(math.sqrt(total), rel=1e-12)
    assert found.singular == 0


def test_a_part_sees_the_gram_of_the_whole_other_factor():
    whole = scaled(UP, DOWN, G, NONE)
    parts = FactorGradients(DOWN, UP, (UP.T @ G)[:, 2:], (G @ DOWN.T)[2:])
    found = riemannian_gradients([parts], NONE)
    torch.testing.assert_close(found.gradients[0][1], whole[0][2:])
    torch.testing.assert_close(found.gradients[0][0], whole[1][:, 2:])


def test_what_has_no_gradient_stays_without():
    layer = FactorGradients(DOWN, UP, None, G @ DOWN.T)
    ((of_down, of_up),) = riemannian_gradients([layer], NONE).gradients
    assert of_down is None
    torch.testing.assert_close(of_up, scaled(UP, DOWN, G, NONE)[0])
    nothing = riemannian_gradients([FactorGradients(DOWN, UP, None, None)], NONE)
    assert nothing.gradients == [(None, None)]
    assert nothing.metric_norm == 0


@pytest.mark.parametrize("mixing", [SKEWED, TURN, 7 * torch.eye(2).double()])
def test_the_metric_norm_is_the_same_for_all_factors_of_a_product(mixing):
    def norm(up: Tensor, down: Tensor) -> float:
        layer = FactorGradients(down, up, up.T @ G, G @ down.T)
        return riemannian_gradients([layer], NONE).metric_norm.item()

    other = norm(UP @ mixing, torch.linalg.inv(mixing) @ DOWN)
    assert other == pytest.approx(norm(UP, DOWN), rel=1e-12)


def test_a_convolution_is_preconditioned_as_its_flat_factors():
    down, up = waves((2, 20), 0.4), UP
    gradient = waves((4, 20), 1.0)
    flat = scaled(up, down, gradient, NONE)
    layer = FactorGradients(
        down.view(2, 5, 2, 2),
        up.view(4, 2, 1, 1),
        (up.T @ gradient).view(2, 5, 2, 2),
        (gradient @ down.T).view(4, 2, 1, 1),
    )
    ((of_down, of_up),) = riemannian_gradients([layer], NONE).gradients
    torch.testing.assert_close(of_up.view(4, 2), flat[0])
    torch.testing.assert_close(of_down.view(2, 20), flat[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype_and_is_preconditioned(dtype):
    up, down, gradient = UP.to(dtype), DOWN.to(dtype), G.to(dtype)
    layer = FactorGradients(down, up, up.T @ gradient, gradient @ down.T)
    wide = FactorGradients(down.float(), up.float(), layer.grad_down.float(), layer.grad_up.float())
    low = riemannian_gradients([layer], Damping(0.01))
    high = riemannian_gradients([wide], Damping(0.01))
    assert low.metric_norm.dtype == torch.float32
    raw = (layer.grad_down, layer.grad_up)
    for mine, exact, plain in zip(low.gradients[0], high.gradients[0], raw, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), exact, rtol=1e-2, atol=1e-2)
        assert (mine.float() - plain.float()).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_gram_gets_its_pseudo_inverse_and_is_counted(dtype):
    generator = torch.Generator().manual_seed(1)
    thin = torch.randn(3, 2, generator=generator, dtype=dtype)
    flat = thin @ torch.randn(2, 8, generator=generator, dtype=dtype)  # rank 2 of 3
    fine = torch.randn(3, 8, generator=generator, dtype=dtype)
    grams = [gram(fine), gram(flat), torch.zeros(3, 3, dtype=dtype)]
    inverses, singular = inverse_grams(grams, NONE)
    assert singular == 2
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        inverses[0], torch.linalg.inv(grams[0]), rtol=tolerance, atol=tolerance
    )
    expected = torch.linalg.pinv(grams[1], rtol=1e-5, hermitian=True)
    torch.testing.assert_close(inverses[1], expected, rtol=tolerance, atol=tolerance)
    assert not inverses[2].any()


def test_relative_damping_inverts_a_zero_gram_to_something_finite():
    inverses, singular = inverse_grams([torch.zeros(3, 3)], Damping(0.01))
    assert singular == 0
    assert inverses[0].isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_run_that_diverged_is_told_so(value):
    grams = [torch.eye(2), torch.full((2, 2), value)]
    with pytest.raises(RuntimeError, match="finite numbers, got others in 1 of 2 Gram matrices"):
        inverse_grams(grams, NONE)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"damping must be at least 0, got -0.1"):
        Damping(-0.1)
    with pytest.raises(ValueError, match=r"share the rank axis, got \(2, 5\) and \(4, 3\)"):
        FactorGradients(torch.ones(2, 5), torch.ones(4, 3), None, None)
