"""The halves of Break-for-Make: which loss moves which part, at which rate, and what stays."""

from dataclasses import replace

import pytest
import torch
from pack.lora_ops import PartlyLearnable
from pack.lora_ops.parametrizations.partly_learnable import frozen_halves
from pack.training import Session, TrainingConfig, train
from pack.training.files.checkpoint import load_checkpoint, save_checkpoint
from pack.training.loop import take_step, updates_of
from pack.training.randomness import noise_for, uniform_timestep
from pack.training.recipes import Half, Make
from pack.training.settings import OPTIMIZERS
from small_denoiser import WIDTH, SmallDenoiser, example

RANK, SEED, RATE, PARTNER = 2, 3, 0.05, 0.2
SITE = "lora_unet_layer_0"
PROJECTIONS = PartlyLearnable(5)
ROLES = pytest.mark.parametrize(
    ("role", "owner", "owned"),
    [
        ("content", "down", "down"),
        ("style", "down", "up"),
        ("content", "up", "up"),
        ("style", "up", "down"),
    ],
)


def config(**changes) -> TrainingConfig:
    values = {"steps": 6, "rank": RANK, "learning_rate": RATE, "seed": SEED, "optimizer": "SGD"}
    return TrainingConfig(**{**values, "weight_decay": 0.0, **changes})


def half(role: str = "content", **changes) -> Half:
    others = [example(n) for n in (4, 5, 6)]
    values = {"projections": PROJECTIONS, "partner_rate": PARTNER, **changes}
    return Half(role, [example(1)], others, **values)


class ReleasedLoop:
    """The schedules in float64, each loss differentiated by its own call."""

    def __init__(self, recipe: Half, owned: str):
        self.base = SmallDenoiser().layers[0].weight.double()
        self.recipe, self.owned = recipe, owned
        parts = PROJECTIONS.init((WIDTH, WIDTH), RANK, torch.Generator().manual_seed(0), SITE)
        self.frozen = {name: parts[name].double() for name in ("down_frozen", "up_frozen")}

    def start(self, session: Session) -> None:
        """Take up the values that the session starts with."""
        parts = session.adapters["half"].parts[SITE]
        self.learnt = {n: parts[n].detach().double().requires_grad_() for n in ("down", "up")}
        self.held = {n: torch.zeros_like(p) for n, p in self.learnt.items()}

    def gradients(self, examples, step: int) -> dict[str, torch.Tensor]:
        down = torch.cat([self.frozen["down_frozen"], self.learnt["down"]], 1)
        up = torch.cat([self.frozen["up_frozen"], self.learnt["up"]], 0)
        weight = self.base + up @ down
        losses = []
        for one in examples:
            latent = one.latent.double()
            noise = noise_for(one.latent, SEED, step, 0).double()
            sigma = (0.1 + 2.0 * uniform_timestep(SEED, step, 0)).double()
            x = latent + sigma * noise
            eps = weight @ (x / (sigma**2 + 1).sqrt() + one.cond.double())
            losses.append((eps - noise).square().mean())
        loss = sum(losses) / len(losses)
        found = torch.autograd.grad(loss, list(self.learnt.values()))
        return dict(zip(self.learnt, found, strict=True))

    def move(self, part: str, gradient: torch.Tensor) -> None:
        rate = RATE if part == self.owned else RATE * PARTNER
        with torch.no_grad():
            self.learnt[part] -= rate * gradient

    def step(self, number: int) -> None:
        main, other = self.recipe.examples, self.recipe.auxiliary
        partner = "up" if self.owned == "down" else "down"
        if self.recipe.gradients == "isolated":
            of_main = self.gradients(main, number)[self.owned]
            of_other = self.gradients(other, number)[partner]
            self.move(self.owned, of_main)
            self.move(partner, of_other)
            return
        for examples, part in ((main, self.owned), (other, partner)):
            for name, gradient in self.gradients(examples, number).items():
                self.held[name] += gradient
            self.move(part, self.held[part])
            self.held[part] = torch.zeros_like(self.held[part])


@ROLES
@pytest.mark.parametrize("gradients", ["isolated", "leaky"])
def test_a_half_equals_the_schedules_in_float64(role, owner, owned, gradients):
    recipe = half(role, content_owns=owner, gradients=gradients)
    denoiser = SmallDenoiser()
    session = Session(denoiser, denoiser.sites, recipe, config())
    oracle = ReleasedLoop(recipe, owned)
    oracle.start(session)
    with session.gates.attached():
        for step in range(6):
            take_step(session, recipe)
            oracle.step(step)
    for part, value in oracle.learnt.items():
        ours = session.adapters["half"].parts[SITE][part].detach().double()
        assert (ours - value).norm() <= 1e-5 * value.norm(), part


def test_isolated_rows_share_one_update_and_leaky_ones_take_two():
    for gradients, count in (("isolated", 1), ("leaky", 2)):
        recipe = half(gradients=gradients)
        updates = updates_of(recipe.rows(0, SEED), config())
        assert len(updates) == count
        assert sum(len(update) for update in updates) == 4


def test_auxiliary_rows_share_the_main_rows_noise_and_take_turns():
    recipe = replace(half(), auxiliary=[example(n) for n in range(4, 11)], samples=2)
    seen = []
    for step in range(7):
        rows = recipe.rows(step, SEED)
        assert [row.name for row in rows] == ["main", *["auxiliary"] * 3] * 2
        assert [row.sample for row in rows] == [0, 0, 0, 0, 1, 1, 1, 1]
        assert sum(row.weight for row in rows if row.name == "main") == pytest.approx(1)
        assert sum(row.weight for row in rows if row.name == "auxiliary") == pytest.approx(1)
        seen += [
            index
            for row in rows
            for index, one in enumerate(recipe.auxiliary)
            if one is row.example
        ]
    assert all(seen.count(index) == 6 for index in range(7))


@ROLES
def test_without_auxiliary_pictures_the_partner_rests(role, owner, owned):
    denoiser = SmallDenoiser()
    recipe = replace(half(role, content_owns=owner), auxiliary=())
    session = Session(denoiser, denoiser.sites, recipe, config(weight_decay=0.1))
    parts = session.adapters["half"].parts[SITE]
    before = {name: parts[name].detach().clone() for name in ("down", "up")}
    with session.gates.attached():
        take_step(session, recipe)
    partner = "up" if owned == "down" else "down"
    assert torch.equal(parts[partner], before[partner])
    assert not torch.equal(parts[owned], before[owned])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_halves_are_bit_identical_after_200_steps_with_weight_decay(optimizer):
    denoiser = SmallDenoiser(layers=2)
    rate = 0.2 if "SGD" in optimizer else 0.01
    run = config(steps=200, optimizer=optimizer, weight_decay=0.1, learning_rate=rate)
    trained = train(denoiser, denoiser.sites, half(), run)
    for site, factors in trained.adapters["half"].items():
        down, up = frozen_halves(site, (WIDTH, WIDTH), RANK, 5, "orthogonal")
        assert torch.equal(factors.down[:, : WIDTH // 2], down)
        assert torch.equal(factors.up[: WIDTH // 2], up)
    assert sum(trained.losses["loss"][-50:]) < sum(trained.losses["loss"][:50])


@pytest.mark.parametrize("optimizer", ["AdamW", "Scaled AdamW", "LoRA-RITE"])
@pytest.mark.parametrize("gradients", ["isolated", "leaky"])
def test_a_half_that_goes_on_from_a_checkpoint_ends_as_an_undisturbed_one(
    optimizer, gradients, tmp_path
):
    recipe = half(gradients=gradients)
    run = config(optimizer=optimizer, learning_rate=0.01, ema_decay=0.9)

    def session() -> Session:
        denoiser = SmallDenoiser(layers=2)
        return Session(denoiser, denoiser.sites, recipe, run)

    whole, first, second = session(), session(), session()
    with whole.gates.attached():
        losses = [take_step(whole, recipe)["loss"] for _ in range(6)]
    with first.gates.attached():
        for _ in range(3):
            take_step(first, recipe)
    checkpoint = first.checkpoint()
    waiting = [name for name in checkpoint.tensors if name.startswith("carried/")]
    assert len(waiting) == (2 if gradients == "leaky" else 0)
    second.restore(load_checkpoint(save_checkpoint(tmp_path, checkpoint, keep=1)))
    with second.gates.attached():
        assert [take_step(second, recipe)["loss"] for _ in range(3)] == losses[3:]
    ours, other = whole.checkpoint(), second.checkpoint()
    assert ours.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(value, other.tensors[key]) for key, value in ours.tensors.items())


def test_a_leaky_step_that_breaks_off_between_its_updates_leaves_the_one_before(monkeypatch):
    recipe, denoiser = half(gradients="leaky"), SmallDenoiser()
    session = Session(denoiser, denoiser.sites, recipe, config(optimizer="AdamW"))
    with session.gates.attached():
        take_step(session, recipe)
        before = session.checkpoint()
        calls = iter([True, False])
        step = session.optimizer.step

        def broken() -> None:
            if not next(calls):
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(session.optimizer, "step", broken)
        # The second update's own step is what breaks: nothing of it happened yet.
        with pytest.raises(KeyboardInterrupt):
            take_step(session, recipe)
    after = session.checkpoint()
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(value, after.tensors[key]) for key, value in before.tensors.items())


def test_making_starts_from_the_halves_and_moves_both_at_once():
    denoiser = SmallDenoiser(layers=2)
    given = train(denoiser, denoiser.sites, half(), config()).adapters["half"]
    recipe = Make([example(1)], [example(2)], PartlyLearnable(given=given))
    run = config(optimizer="Scaled AdamW", learning_rate=0.01)
    session = Session(denoiser, denoiser.sites, recipe, run)
    plain = Session(denoiser, denoiser.sites, recipe, replace(run, optimizer="AdamW"))
    for site, factors in session.trained().adapters["lora"].items():
        assert torch.equal(factors.down, given[site].down)
        assert torch.equal(factors.up, given[site].up)
    for one in (session, plain):
        with one.gates.attached():
            # Adam's first step is the gradient's sign alone.
            losses = [take_step(one, recipe) for _ in range(3)]
        assert losses[0].keys() == {"loss", "content", "style"}
    for site, factors in session.trained().adapters["lora"].items():
        other = plain.trained().adapters["lora"][site]
        middle = WIDTH // 2
        assert torch.equal(factors.down[:, :middle], given[site].down[:, :middle])
        assert torch.equal(factors.up[:middle], given[site].up[:middle])
        for ours, before, theirs in (
            (factors.down, given[site].down, other.down),
            (factors.up, given[site].up, other.up),
        ):
            assert (ours - before).abs().max() > 1e-4
            assert (ours - theirs).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Half("content", []), "at least one picture, got none"),
        (lambda: Half("content", [example(1)], gradients="both"), "isolated and leaky, got 'both'"),
        (lambda: Half("content", [example(1)], mirrored=[example(1)] * 2), "got 2 for 1"),
        (lambda: Make([], [example(1)], PROJECTIONS), "got 0 of the content and 1 of the style"),
    ],
)
def test_what_a_recipe_refuses(make, said):
    with pytest.raises(ValueError, match=said):
        make()
