"""The optimisers over factor pairs in the real loop: invariance, Pair, rates, resume, memory."""

from dataclasses import replace

import pytest
import torch
from pack.lora_ops import PartlyLearnable
from pack.training import Gate, Session, TrainingConfig, train
from pack.training.files.checkpoint import load_checkpoint, save_checkpoint
from pack.training.loop import take_step
from pack.training.memory import optimizer_bytes
from pack.training.optimizers.by_name import PRECONDITIONED
from pack.training.optimizers.factor_optimizer import SINGULAR
from pack.training.recipes import Half, Pair, Row, Single
from pack.training.settings import OPTIMIZERS
from small_denoiser import SmallDenoiser, example
from torch import Tensor

RANK, STEPS = 3, 5
SITE = "lora_unet_layer_0"
EXAMPLES = [example(n) for n in range(4)]
RATES = {"Scaled SGD": 0.5, "Scaled AdamW": 0.05, "LoRA-RITE": 0.05, "SGD": 0.5}
CLIP = 0.05  # the gradients' metric norm is about 0.5
each_optimizer = pytest.mark.parametrize("name", PRECONDITIONED)


def config(name: str, **changes) -> TrainingConfig:
    values = {"steps": STEPS, "rank": RANK, "seed": 3, "weight_decay": 0.0, "optimizer": name}
    return TrainingConfig(**{**values, "learning_rate": RATES.get(name, 0.05), **changes})


def half(**changes) -> Half:
    others = changes.pop("auxiliary", EXAMPLES[1:])
    return Half("content", EXAMPLES[:1], others, PartlyLearnable(5), **changes)


def mixed_session(name: str, mixing: Tensor, **changes) -> Session:
    """A run whose factors start as full-rank ones, mixed by ``mixing``."""
    denoiser = SmallDenoiser(layers=2)
    run = config(name, **{"passes": 2, "max_grad_norm": CLIP, "damping": 0.0, **changes})
    session = Session(denoiser, denoiser.sites, Single(EXAMPLES, 4), run)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parts in session.adapters["lora"].parts.values():
            up = torch.randn(parts["up"].shape, generator=generator).double()
            parts["up"].copy_(0.5 * up @ mixing)
            parts["down"].copy_(torch.linalg.inv(mixing) @ parts["down"].double())
    return session


def products(session: Session, steps: int = STEPS) -> list[Tensor]:
    """Both layers' products after every step."""
    found = []
    with session.gates.attached():
        for _ in range(steps):
            take_step(session, Single(EXAMPLES, 4))
            layers = session.trained().adapters["lora"].values()
            found += [layer.up.double() @ layer.down.double() for layer in layers]
    return found


def most_apart(name: str, mixing: Tensor, **changes) -> float:
    straight = products(mixed_session(name, torch.eye(RANK).double(), **changes))
    mixed = products(mixed_session(name, mixing, **changes))
    return max((a - b).abs().max().item() for a, b in zip(straight, mixed, strict=True))


MIXING = torch.tensor([[2.0, 0.5, 0.0], [-0.3, 0.7, 0.4], [0.2, 0.0, 3.0]], dtype=torch.float64)
SWAPPED = torch.tensor([[0, -1, 0], [0, 0, 1], [-1, 0, 0]], dtype=torch.float64)


# fp32 rounds factors of size 3 by 2e-7, and the Grams square the mixing's condition number of 4:
# 3e-6 a step, which five steps add up in part. A plain clip alone is a thousand times further
# apart, and so are the plain optimisers.
@pytest.mark.parametrize("name", ["Scaled SGD", "LoRA-RITE"])
def test_the_loop_with_accumulation_and_clip_is_the_same_for_all_factors_of_a_product(name):
    assert most_apart(name, MIXING) < 1e-5


def test_scaled_adamw_in_the_loop_ignores_order_and_signs_alone():
    assert most_apart("Scaled AdamW", SWAPPED) < 1e-5
    assert most_apart("Scaled AdamW", MIXING) > 1e-2


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_plain_optimisers_in_the_loop_depend_on_the_factors(name):
    assert most_apart(name, MIXING) > 1e-2


def test_the_clip_of_these_runs_is_at_work_and_the_passes_add_up():
    def last(**changes) -> Tensor:
        return products(mixed_session("Scaled SGD", MIXING, **changes))[-1]

    clipped = last()
    assert (last(max_grad_norm=0.0) - clipped).abs().max() > 1e-2
    # Rows fall into forwards of their own, so sums are rounded in another order.
    torch.testing.assert_close(last(passes=1), clipped, atol=1e-5, rtol=0)
    session = mixed_session("Scaled SGD", MIXING)
    products(session, steps=1)
    assert session.denoiser.calls == [2, 2]


def test_the_loop_clips_to_the_metric_norm_it_is_given():
    """One step of scaled SGD from a gradient of metric norm ``n`` moves along n times less."""
    start = products(mixed_session("Scaled SGD", MIXING, learning_rate=1e-30), steps=1)
    moves = {}
    for most in (1e-3, 2e-3):
        session = mixed_session("Scaled SGD", MIXING, max_grad_norm=most)
        after = products(session, steps=1)
        moves[most] = torch.cat([(a - b).flatten() for a, b in zip(after, start, strict=True)])
    assert moves[1e-3].norm() > 1e-4
    # Each factor moves by its share, so their product does but for the second order.
    torch.testing.assert_close(moves[2e-3], 2 * moves[1e-3], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("damping", "clip"), [(0.01, 0.0), (0.0, 0.02)])
@pytest.mark.parametrize("passes", [1, 2])
def test_for_pair_scaled_adamw_is_adamw(damping, clip, passes):
    """Its frozen rows are orthonormal: their Gram is the identity, damped a multiple of it."""
    recipe = Pair([tuple(EXAMPLES[:2]), tuple(EXAMPLES[2:])], style_start_step=3, samples=2)
    found = []
    for name in ("AdamW", "Scaled AdamW"):
        denoiser = SmallDenoiser(layers=2)
        run = config(name, steps=30, learning_rate=0.01, weight_decay=0.1, damping=damping)
        run = replace(run, max_grad_norm=clip, passes=passes, rank=2)
        found.append(train(denoiser, denoiser.sites, recipe, run))
    plain, scaled = found
    assert scaled.losses["loss"] == pytest.approx(plain.losses["loss"], rel=1e-4)
    for name, layers in plain.adapters.items():
        for site, layer in layers.items():
            assert layer.up.abs().max() > 0.02
            # 30 steps of 0.01 in fp32, the rows orthonormal to fp32
            torch.testing.assert_close(scaled.adapters[name][site].up, layer.up, rtol=0, atol=2e-5)
            assert torch.equal(scaled.adapters[name][site].down, layer.down)


@each_optimizer
def test_a_part_that_no_row_moves_is_skipped_through_decay_and_clip(name):
    denoiser = SmallDenoiser(layers=2)
    recipe = half(auxiliary=())
    run = config(name, weight_decay=0.5, max_grad_norm=CLIP)
    session = Session(denoiser, denoiser.sites, recipe, run)
    for parts in session.adapters["half"].parts.values():
        parts["up"].data.fill_(0.25)  # decay would be seen
    before = {key: value.detach().clone() for key, value in session.parameters.items()}
    with session.gates.attached():
        for _ in range(STEPS):
            take_step(session, recipe)
    for key, value in session.parameters.items():
        rests = key.endswith("/up")
        assert torch.equal(value, before[key]) == rests, key
        assert value.isfinite().all()
        if rests:
            assert not session.optimizer.state.get(value)


@pytest.mark.parametrize("name", ["Scaled SGD", "Scaled AdamW"])
def test_damping_0_on_a_zero_start_is_said_once_and_learns(name):
    told: list[str] = []
    denoiser = SmallDenoiser(layers=2)
    recipe = Single(EXAMPLES, 4)
    trained = train(
        denoiser, denoiser.sites, recipe, config(name, damping=0.0, steps=8), warn=told.append
    )
    assert told == [SINGULAR]
    for layer in trained.adapters["lora"].values():
        assert layer.up.isfinite().all()
        assert layer.up.any()
        assert layer.down.isfinite().all()
    train(denoiser, denoiser.sites, recipe, config(name, steps=8), warn=told.append)
    assert told == [SINGULAR]


@each_optimizer
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_partner_learns_at_its_rate(name, clip):
    """A first step is as long as its group's rate, whatever the other group's."""

    def moves(rate: float) -> dict[str, Tensor]:
        denoiser = SmallDenoiser(layers=2)
        recipe = half(partner_rate=rate)
        session = Session(denoiser, denoiser.sites, recipe, config(name, max_grad_norm=clip))
        assert {group["initial_lr"] for group in session.optimizer.param_groups} == {
            session.config.learning_rate,
            session.config.learning_rate * rate,
        }
        before = {key: value.detach().clone() for key, value in session.parameters.items()}
        with session.gates.attached():
            take_step(session, recipe)
        return {key: value.detach() - before[key] for key, value in session.parameters.items()}

    full, quarter = moves(1.0), moves(0.25)
    for key, moved in full.items():
        assert moved.any()
        share = 0.25 if key.endswith("/up") else 1.0
        torch.testing.assert_close(quarter[key], share * moved, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["plain", "half", "pair"])
def test_what_an_optimiser_keeps_is_counted_to_the_byte(name, kind):
    recipe = {
        "plain": Single(EXAMPLES, 4),
        "half": half(),
        "pair": Pair([tuple(EXAMPLES[:2])], style_start_step=0),
    }[kind]
    denoiser = SmallDenoiser(layers=2)
    session = Session(denoiser, denoiser.sites, recipe, config(name))
    forecast = optimizer_bytes(session.optimizer)
    with session.gates.attached():
        take_step(session, recipe)
    kept = [
        value
        for state in session.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    assert forecast == sum(value.nbytes for value in kept if value.ndim)


class Halves:
    """A recipe of one partly learnable adapter."""

    def adapters(self):
        return {"half": PartlyLearnable(5)}

    def lr_scales(self):
        return {}

    def rows(self, step: int, seed: int):
        return [Row("half", example(n), {"half": Gate()}, 0.5, n) for n in range(2)]


def session(name: str, rate: float = 0.02) -> Session:
    denoiser = SmallDenoiser(layers=2)
    config = TrainingConfig(
        9, 2, rate, seed=3, weight_decay=0.1, passes=2, ema_decay=0.9, optimizer=name,
        max_grad_norm=1.0,
    )  # fmt: skip
    found = Session(denoiser, denoiser.sites, Halves(), config)
    assert found.optimizer.param_groups[0]["max_norm"] == 1.0
    order = [part for group in found.optimizer.param_groups for part in group["params"]]
    assert all(a is b for a, b in zip(order, found.parameters.values(), strict=True))
    return found


@each_optimizer
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_an_undisturbed_one(name, tmp_path):
    whole = session(name)
    with whole.gates.attached():
        losses = [take_step(whole, Halves())["loss"] for _ in range(6)]
    first = session(name)
    with first.gates.attached():
        for _ in range(3):
            take_step(first, Halves())
    path = save_checkpoint(tmp_path, first.checkpoint(), keep=1)
    second = session(name)
    second.restore(load_checkpoint(path))
    with second.gates.attached():
        again = [take_step(second, Halves())["loss"] for _ in range(3)]
    assert again == losses[3:]
    ours, other = whole.checkpoint(), second.checkpoint()
    assert ours.tensors.keys() == other.tensors.keys()
    for key, value in ours.tensors.items():
        assert torch.equal(value, other.tensors[key]), key
    assert ours.scalars == other.scalars


@each_optimizer
def test_training_lowers_the_loss(name):
    run = session(name, rate=0.05 if name != "Scaled SGD" else 0.5)
    with run.gates.attached():
        losses = [take_step(run, Halves())["loss"] for _ in range(60)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
