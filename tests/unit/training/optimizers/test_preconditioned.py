"""The optimisers over factor pairs: oracle, invariance, frozen halves, refusals."""

import math

import partly_learnable as schedules
import preconditioner as oracle
import pytest
import torch
from pack.lora_ops import LowRank, OrthogonalRows, Plain
from pack.lora_ops.parametrizations.partly_learnable import PartlyLearnable
from pack.lora_ops.preconditioner import Damping
from pack.training import Gate, Site
from pack.training.adapters import TrainedAdapter, new_adapter
from pack.training.optimizers.by_name import PRECONDITIONED
from pack.training.optimizers.factor_optimizer import SINGULAR
from pack.training.optimizers.factor_pairs import FactorPair, factor_pairs
from pack.training.optimizers.lora_rite import LoraRite
from pack.training.optimizers.scaled import ScaledAdamW, ScaledSGD
from torch import Tensor, nn

CPU = torch.device("cpu")
NONE = Damping(0.0)
each_optimizer = pytest.mark.parametrize("name", PRECONDITIONED)


def waves(shape: tuple[int, int], shift: float) -> Tensor:
    """sin(shift + 0.7 k) in the order of rows: what the golden numbers were computed from."""
    count = math.prod(shape)
    return torch.sin(shift + 0.7 * torch.arange(count, dtype=torch.float64)).view(shape)


UP, DOWN, TARGET = waves((4, 2), 0.3), waves((2, 5), 1.1), waves((4, 5), 5.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def plain_pair(up: Tensor, down: Tensor) -> FactorPair:
    parts = {"down": nn.Parameter(down.clone()), "up": nn.Parameter(up.clone())}
    return FactorPair(parts, lambda: LowRank(parts["down"], parts["up"]))


def product(pair: FactorPair) -> Tensor:
    factors = pair.factors()
    return factors.up @ factors.down


def fit(pair: FactorPair, optimizer, target: Tensor, steps: int, passes: int = 1) -> Tensor:
    """Steps towards the target; ``passes`` backwards add up to every gradient."""
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(passes):
            (0.5 * (product(pair) - target).square().sum() / passes).backward()
        optimizer.step()
    return product(pair).detach()


def halves_adapter(shape=(8, 6), rank: int = 2, seed: int = 0, start="orthogonal"):
    site = Site(nn.Linear(shape[1], shape[0], bias=False).requires_grad_(False), shape)
    return new_adapter("half", PartlyLearnable(5, start), {"site": site}, rank, seed, CPU)


@pytest.mark.parametrize(("damping", "relative"), [(0.0, False), (0.01, False), (0.05, True)])
def test_scaled_adamw_equals_the_plain_loops(damping, relative):
    pair = plain_pair(UP, DOWN)
    optimizer = ScaledAdamW(
        [pair], 0.05, weight_decay=0.1, damping=Damping(damping, relative), betas=(0.8, 0.9)
    )
    slow = oracle.ScaledAdamW(
        UP.tolist(), DOWN.tolist(), 0.05, (0.8, 0.9), 1e-8, 0.1, damping, relative
    )
    for _ in range(6):
        now = oracle.product(slow.values["up"], slow.values["down"])
        slow.step(oracle.combined(now, TARGET.tolist(), -1.0))
        fit(pair, optimizer, TARGET, steps=1)
    for name in ("up", "down"):
        expected = torch.tensor(slow.values[name], dtype=torch.float64)
        torch.testing.assert_close(pair.parts[name].data, expected, rtol=1e-9, atol=1e-9)


# Golden numbers: computed apart from this code from the formulas of Zhang & Pilanci 2024.
@pytest.mark.parametrize(("tiny", "low", "high"), [(0.0, 0.0, 2e-7), (1e-8, 2.1e-3, 2.3e-3)])
def test_huge_damping_is_plain_adamw_but_for_the_floor(tiny, low, high):
    pair, other = plain_pair(UP, DOWN), plain_pair(UP, DOWN)
    scaled = ScaledAdamW(
        [pair], 0.01, 0.0, Damping(1e6, relative=False), betas=(0.9, 0.999), tiny=tiny
    )
    plain = torch.optim.AdamW(other.parts.values(), lr=0.01, weight_decay=0.0, eps=tiny)
    fit(pair, scaled, TARGET, 3)
    fit(other, plain, TARGET, 3)
    apart = [(pair.parts[name] - other.parts[name]).abs().max().item() for name in pair.parts]
    assert low <= max(apart) <= high


def trajectory(name: str, mixing: Tensor, seed: int = 0, **changes) -> list[Tensor]:
    """Five steps from mixed factors, each of three batches' gradients, with an active clip."""
    up, down, target = (
        random(*shape, seed=seed + n) for n, shape in enumerate([(8, 3), (3, 7), (8, 7)])
    )
    pair = plain_pair(up @ mixing, torch.linalg.inv(mixing) @ down)
    if name != "LoRA-RITE":
        changes["damping"] = changes.get("damping", NONE)
    changes = {"max_norm": 2.0, **changes}
    optimizer = PRECONDITIONED[name]([pair], 0.05, weight_decay=0.0, **changes)
    products = []
    for step in range(5):
        optimizer.zero_grad()
        for batch in range(3):
            inputs = random(7, 4, seed=100 + 3 * step + batch)
            (0.5 * ((product(pair) - target) @ inputs).square().sum() / 12).backward()
        optimizer.step()
        products.append(product(pair).detach())
    return products


@each_optimizer
def test_the_clip_of_these_trajectories_is_active(name):
    mixing = torch.eye(3).double()
    pairs = zip(trajectory(name, mixing), trajectory(name, mixing, max_norm=0.0), strict=True)
    assert max((clipped - free).abs().max() for clipped, free in pairs) > 1e-3


def most_apart(name: str, mixing: Tensor, **changes) -> float:
    straight = trajectory(name, torch.eye(3).double(), **changes)
    mixed = trajectory(name, mixing, **changes)
    return max((a - b).abs().max().item() for a, b in zip(straight, mixed, strict=True))


@pytest.mark.parametrize(("name", "within"), [("Scaled SGD", 1e-10), ("LoRA-RITE", 1e-6)])
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_steps_are_the_same_for_all_factors_of_a_product(name, within, seed):
    assert most_apart(name, 2 * random(3, 3, seed=seed)) < within


def test_scaled_adamw_ignores_order_and_signs_of_the_rank_axis_alone():
    swapped = torch.tensor([[0, -1, 0], [0, 0, 1], [-1, 0, 0]], dtype=torch.float64)
    turn = torch.linalg.qr(random(3, 3, seed=4)).Q
    assert most_apart("Scaled AdamW", swapped) < 1e-10
    assert most_apart("Scaled AdamW", turn) > 1e-3
    assert most_apart("Scaled AdamW", 3 * torch.eye(3).double()) > 1e-3


def test_relative_damping_keeps_turns_and_scales_absolute_damping_turns_alone():
    turn = torch.linalg.qr(random(3, 3, seed=4)).Q
    for amount in (Damping(0.1), Damping(0.1, relative=False)):
        assert most_apart("Scaled SGD", turn, damping=amount) < 1e-10
    assert most_apart("Scaled SGD", 5 * turn, damping=Damping(0.1)) < 1e-10
    assert most_apart("Scaled SGD", 5 * turn, damping=Damping(0.1, relative=False)) > 1e-3


def test_a_plain_norm_clip_would_break_it():
    def clipped(mixing: Tensor) -> Tensor:
        pair = plain_pair(UP @ mixing, torch.linalg.inv(mixing) @ DOWN)
        optimizer = ScaledSGD([pair], 0.1, damping=NONE)
        (0.5 * (product(pair) - TARGET).square().sum()).backward()
        torch.nn.utils.clip_grad_norm_(pair.parts.values(), 0.5)
        optimizer.step()
        return product(pair).detach()

    assert (clipped(5 * torch.eye(2).double()) - clipped(torch.eye(2).double())).abs().max() > 1e-3


@each_optimizer
def test_the_clip_shortens_the_metric_norm_to_the_limit(name):
    changes = {} if name == "LoRA-RITE" else {"damping": NONE}
    moved = {}
    for most in (0.0, 1e-3, 1e6):
        pair = plain_pair(UP, DOWN)
        optimizer = PRECONDITIONED[name]([pair], 0.1, weight_decay=0.0, max_norm=most, **changes)
        moved[most] = fit(pair, optimizer, TARGET, 1) - UP @ DOWN
    torch.testing.assert_close(moved[0.0], moved[1e6])
    if name == "Scaled SGD":  # adaptive steps forget the length of a first gradient
        first_order = moved[1e-3] / 0.1
        assert 1e-4 < first_order.norm() < 2e-3 < (moved[0.0] / 0.1).norm()


@each_optimizer
def test_frozen_halves_stay_bit_identical_through_weight_decay(name):
    adapter = halves_adapter()
    parts = adapter.parts["site"]
    before = {part: parts[part].clone() for part in ("down_frozen", "up_frozen", "down", "up")}
    (pair,) = factor_pairs([adapter], 0.02)
    optimizer = PRECONDITIONED[name]([pair], 0.02, weight_decay=0.5)
    target = random(8, 6, seed=3).float()
    fit(pair, optimizer, target, steps=200)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(parts["down"]), id(parts["up"])
    }  # fmt: skip
    for part in ("down_frozen", "up_frozen"):
        assert torch.equal(parts[part], before[part])
    for part in ("down", "up"):
        assert not torch.equal(parts[part], before[part])
    result = adapter.result()["site"]
    assert torch.equal(result.up[:4], before["up_frozen"])
    assert torch.equal(result.down[:, :3], before["down_frozen"])


@each_optimizer
def test_a_step_moves_both_halves_and_is_not_plain_adamw(name):
    learnt = {}
    for maker in (PRECONDITIONED[name], None):
        adapter = halves_adapter()
        with torch.no_grad():
            adapter.parts["site"]["up"].copy_(random(4, 2, seed=1))
        (pair,) = factor_pairs([adapter], 0.01)
        start = [part.detach().clone() for part in pair.parts.values()]
        if maker is None:
            optimizer = torch.optim.AdamW(pair.parts.values(), lr=0.01, weight_decay=0.0)
        else:
            optimizer = maker([pair], 0.01, weight_decay=0.0)
        # The second step tells scaled AdamW apart: a first step of Adam is all signs.
        fit(pair, optimizer, random(8, 6, seed=3).float(), steps=2)
        learnt[maker] = [part.detach() for part in pair.parts.values()]
        for part, was in zip(learnt[maker], start, strict=True):
            assert (part - was).abs().max() > 1e-4
    for ours, plain in zip(*learnt.values(), strict=True):
        assert (ours - plain).abs().max() > 1e-6


@each_optimizer
def test_a_part_without_gradient_is_skipped_whole(name):
    pair = plain_pair(UP, DOWN)
    optimizer = PRECONDITIONED[name]([pair], 0.1, weight_decay=0.5)
    for part in ("down", "up"):
        other = "up" if part == "down" else "down"
        optimizer.zero_grad()
        (product(pair) - TARGET).square().sum().backward()
        pair.parts[other].grad = None
        held = pair.parts[other].detach().clone()
        moving = pair.parts[part].detach().clone()
        optimizer.step()
        assert torch.equal(pair.parts[other], held)
        assert not torch.equal(pair.parts[part], moving)
        if part == "down":
            assert not optimizer.state[pair.parts["up"]]
    optimizer.zero_grad()
    before = [part.detach().clone() for part in pair.parts.values()]
    optimizer.step()
    for part, was in zip(pair.parts.values(), before, strict=True):
        assert torch.equal(part, was)


@pytest.mark.parametrize("damping", [Damping(), NONE])
def test_on_frozen_orthonormal_rows_scaled_adamw_is_adamw(damping):
    """Pair Customization's adapter: the Gram of its rows is the identity."""
    results = []
    for scaled in (True, False):
        site = Site(nn.Linear(12, 6, bias=False).requires_grad_(False), (6, 12))
        adapter = new_adapter("style", OrthogonalRows(), {"site": site}, 3, 0, CPU)
        (pair,) = factor_pairs([adapter], 0.01)
        if scaled:
            optimizer = ScaledAdamW([pair], 0.01, weight_decay=0.1, damping=damping)
        else:
            optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01, weight_decay=0.1)
        fit(pair, optimizer, random(6, 12, seed=2).float(), steps=30)
        results.append(adapter.result()["site"].up)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-5)
    assert results[0].abs().max() > 0.1


def test_gates_give_each_half_its_own_loss_as_isolated_gradients():
    """L_main = D + 10 B and L_aux = 100 D + 1000 B, three steps."""
    adapter = halves_adapter(shape=(2, 2), rank=1)
    main, aux = {"down": 1.0, "up": 10.0}, {"down": 100.0, "up": 1000.0}
    seen = {"down": [], "up": []}
    for _ in range(3):
        for weights, gate in ((main, Gate(frozen=frozenset({"up"}))),
                              (aux, Gate(frozen=frozenset({"down"})))):  # fmt: skip
            factors = adapter.factors("site", gate.frozen, torch.empty(0))
            loss = weights["down"] * factors.down[0, 1] + weights["up"] * factors.up[1, 0]
            loss.backward()
        for part in seen:
            seen[part].append(adapter.parts["site"][part].grad.item())
            adapter.parts["site"][part].grad = None
    assert seen == {"down": [1.0, 1.0, 1.0], "up": [1000.0, 1000.0, 1000.0]}
    assert seen == schedules.isolated(3, main, aux)


def test_the_oracle_of_the_released_schedule_leaks_as_the_released_loop():
    main, aux = {"down": 1.0, "up": 10.0}, {"down": 100.0, "up": 1000.0}
    assert schedules.leaky(3, main, aux) == {
        "down": [1.0, 101.0, 101.0], "up": [1010.0, 1010.0, 1010.0]
    }  # fmt: skip


@each_optimizer
def test_bf16_factors_keep_fp32_moments_through_a_reload(name):
    pair = plain_pair(UP.bfloat16(), DOWN.bfloat16())
    optimizer = PRECONDITIONED[name]([pair], 0.05)
    before = (product(pair).double() - TARGET).norm()
    fit(pair, optimizer, TARGET.bfloat16(), steps=20)
    assert (product(pair).double() - TARGET).norm() < before
    assert all(part.dtype == torch.bfloat16 for part in pair.parts.values())
    again = PRECONDITIONED[name]([pair], 0.05)
    again.load_state_dict(optimizer.state_dict())
    for part in pair.parts.values():
        assert again.state[part].keys() == optimizer.state[part].keys()
        for key, value in optimizer.state[part].items():
            other = again.state[part][key]
            if isinstance(value, Tensor):
                assert other.dtype == value.dtype == torch.float32
                assert torch.equal(other, value)
                assert other.data_ptr() != value.data_ptr()
            else:
                assert other == value


@each_optimizer
def test_a_zero_start_learns(name):
    site = Site(nn.Linear(12, 16, bias=False).requires_grad_(False), (16, 12))
    adapter: TrainedAdapter = new_adapter("lora", Plain(), {"site": site}, 3, 0, CPU)
    (pair,) = factor_pairs([adapter], 0.05)
    target = (random(16, 3, seed=1) @ random(3, 12, seed=2)).float()
    optimizer = PRECONDITIONED[name]([pair], 0.05, weight_decay=0.0)
    last = fit(pair, optimizer, target, steps=200)
    assert (last - target).norm() < 0.1 * target.norm()


def test_a_singular_gram_without_damping_is_said_once():
    told: list[str] = []
    pair = plain_pair(torch.zeros(4, 2).double(), DOWN)
    optimizer = ScaledSGD([pair], 0.1, damping=NONE, warn=told.append)
    for _ in range(3):
        pair.parts["up"].data.zero_()
        fit(pair, optimizer, TARGET, 1)
    assert told == [SINGULAR]
    assert pair.parts["up"].isfinite().all()


@each_optimizer
def test_factors_too_large_to_square_end_the_step_before_anything_moves(name):
    pair = plain_pair(UP, 1e200 * DOWN)
    optimizer = PRECONDITIONED[name]([pair], 0.1)
    for part in pair.parts.values():
        part.grad = torch.ones_like(part)
    with pytest.raises(
        RuntimeError, match=r"finite numbers, got others .* lower the learning rate"
    ):
        optimizer.step()
    assert torch.equal(pair.parts["up"], UP)
    assert torch.equal(pair.parts["down"], 1e200 * DOWN)


def test_groups_may_have_rates_of_their_own():
    pair = plain_pair(UP, DOWN)
    optimizer = ScaledSGD([pair], 0.1, damping=NONE)
    group = optimizer.param_groups[0]
    down, up = group["params"]
    group["params"] = [down]
    optimizer.add_param_group({**group, "params": [up], "lr": 0.0})
    fit(pair, optimizer, TARGET, 1)
    assert torch.equal(up, UP)
    assert not torch.equal(down, DOWN)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="learnt parts down or up of a layer, got magnitude"):
        FactorPair({"magnitude": nn.Parameter(torch.ones(3))}, lambda: LowRank(DOWN, UP))
    with pytest.raises(ValueError, match=r"max_norm must be at least 0, got -1"):
        ScaledSGD([plain_pair(UP, DOWN)], 0.1, max_norm=-1.0)
    with pytest.raises(ValueError, match="no closure, got one"):
        LoraRite([plain_pair(UP, DOWN)], 0.1).step(lambda: 0.0)
