"""The loop: packings against float64 oracles, shared noise, gradients, early ends."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pack.lora_ops import disjoint_bases
from pack.training import Example, GatedAdapters, TrainingConfig, train
from pack.training.adapters import new_adapter
from pack.training.loop import row_errors
from pack.training.optimizers.by_name import make_optimizer
from pack.training.randomness import noise_for, uniform_timestep
from pack.training.recipes import Pair, Row, Single
from pair_trainer import PairTrainer
from small_denoiser import WIDTH, SmallDenoiser, example

STEPS, STYLE_START, RANK, SEED = 6, 2, 2, 11
SITE = "lora_unet_layer_0"


def config(**changes) -> TrainingConfig:
    values = {"steps": STEPS, "rank": RANK, "learning_rate": 0.02, "seed": SEED}
    return TrainingConfig(**{**values, "weight_decay": 0.1, **changes})


def pair(style_start_step: int = STYLE_START, **changes) -> Pair:
    return Pair([(example(1), example(2))], style_start_step, **changes)


@pytest.mark.parametrize("packing", ["sequential", "batched"])
def test_a_run_equals_the_oracle(packing):
    denoiser, recipe = SmallDenoiser(), pair()
    trained = train(denoiser, denoiser.sites, recipe, config(packing=packing))

    before, after = recipe.pairs[0]
    content_down, style_down = disjoint_bases(WIDTH, RANK, RANK, recipe.basis_seed)
    oracle = PairTrainer(
        base=denoiser.layers[0].weight.double().tolist(),
        content_down=content_down.double().tolist(),
        style_down=style_down.double().tolist(),
        before=before.latent.tolist(),
        after=after.latent.tolist(),
        learning_rate=0.02,
        weight_decay=0.1,
    )
    step_of_oracle = {"sequential": oracle.sequential_step, "batched": oracle.batched_step}
    content_losses, style_losses = [], []
    for step in range(STEPS):
        noise = noise_for(before.latent, SEED, step, 0).tolist()
        sigma = denoiser.sigma_at(uniform_timestep(SEED, step, 0)).item()
        content, style = step_of_oracle[packing](noise, sigma, step >= STYLE_START)
        content_losses.append(content)
        style_losses.append(style)
    expected_style = [loss for loss in style_losses if loss is not None]

    # fp32 against float64 over six steps of AdamW
    assert trained.losses["content"] == pytest.approx(content_losses, rel=1e-5)
    assert trained.losses["style"] == pytest.approx(expected_style, rel=1e-5)
    sums = [c + (s or 0.0) for c, s in zip(content_losses, style_losses, strict=True)]
    assert trained.losses["loss"] == pytest.approx(sums, rel=1e-5)
    for name, optimizer in (("content 0", oracle.content), ("style", oracle.style)):
        up = torch.tensor(optimizer.value)
        torch.testing.assert_close(trained.adapters[name][SITE].up, up, atol=2e-6, rtol=1e-4)
    assert oracle.content.steps == STEPS
    assert oracle.style.steps == STEPS - STYLE_START


def test_packings_differ_once_the_style_joins():
    losses = {}
    for packing in ("sequential", "batched"):
        denoiser = SmallDenoiser()
        losses[packing] = train(denoiser, denoiser.sites, pair(), config(packing=packing)).losses
    first = losses["sequential"]["style"][0]
    assert first != pytest.approx(losses["batched"]["style"][0], rel=1e-4)
    # The content never sees the style; only the number of rows per product differs.
    assert losses["sequential"]["content"] == pytest.approx(losses["batched"]["content"], rel=1e-6)


def test_packings_use_the_forwards_that_they_say():
    calls = {}
    for packing in ("batched", "sequential"):
        denoiser = SmallDenoiser()
        train(denoiser, denoiser.sites, pair(1, samples=3), config(steps=2, packing=packing))
        calls[packing] = denoiser.calls
    assert calls["batched"] == [3, 6]
    assert calls["sequential"] == [1] * 9


def test_rows_of_other_shapes_get_a_forward_of_their_own():
    denoiser = SmallDenoiser()
    examples = [example(1), example(2), Example(torch.zeros(1, WIDTH), torch.zeros(1, WIDTH))]
    train(denoiser, denoiser.sites, Single(examples, batch_size=3), config(steps=1))
    assert sorted(denoiser.calls) == [1, 2]


def test_equal_pictures_are_noised_to_equal_inputs():
    denoiser, same = SmallDenoiser(), example(1)
    train(denoiser, denoiser.sites, Pair([(same, same)], style_start_step=0), config(steps=2))
    for x in denoiser.seen:
        assert torch.equal(x[0], x[1])


def test_content_and_style_rows_reach_their_own_parameters_alone():
    denoiser, recipe = SmallDenoiser(layers=2), pair(style_start_step=0)
    adapters = {
        name: new_adapter(name, kind, denoiser.sites, RANK, SEED, denoiser.device)
        for name, kind in recipe.adapters().items()
    }
    optimizer = make_optimizer([adapters["style"]], config())
    gates = GatedAdapters(denoiser.sites, adapters)
    content, style = recipe.rows(0, SEED)

    def grads(row: Row) -> dict[str, list[bool]]:
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.grad = None
        row_errors(denoiser, gates, [row], config(), 0).sum().backward()
        return {
            name: [p.grad is not None and bool(p.grad.any()) for p in adapter.parameters()]
            for name, adapter in adapters.items()
        }

    with gates.attached():
        assert grads(content) == {"content 0": [True, True], "style": [False, False]}
        assert grads(style) == {"content 0": [False, False], "style": [True, True]}
    assert all(p.grad is None for p in adapters["content 0"].parameters())
    optimizer.step()
    for name, kind in recipe.adapters().items():
        for parts in adapters[name].parts.values():
            drawn = kind.init((WIDTH, WIDTH), RANK, torch.Generator())["down"]
            assert torch.equal(parts["down"], drawn)
            assert not parts["down"].requires_grad


def test_the_first_update_is_one_learning_rate_wide():
    denoiser = SmallDenoiser()
    run = config(steps=3, learning_rate=1e-5, weight_decay=0.0)
    trained = train(denoiser, denoiser.sites, pair(style_start_step=2), run)
    style = trained.adapters["style"][SITE].up  # its only update
    content = trained.adapters["content 0"][SITE].up
    torch.testing.assert_close(style.abs(), torch.full_like(style, 1e-5), rtol=1e-2, atol=0)
    assert content.abs().max() <= 3.01e-5


def test_the_style_stays_zero_until_it_starts():
    denoiser = SmallDenoiser()
    trained = train(denoiser, denoiser.sites, pair(style_start_step=STEPS), config())
    assert not trained.adapters["style"][SITE].up.any()
    assert "style" not in trained.losses


def test_a_longer_run_begins_as_the_shorter_one():
    runs = []
    for steps in (4, 6):
        denoiser = SmallDenoiser()
        runs.append(train(denoiser, denoiser.sites, pair(), config(steps=steps)).losses)
    short, long = runs
    assert long["content"][:4] == short["content"]
    assert long["style"][:2] == short["style"]


def test_the_gradient_of_a_batch_is_the_mean_of_its_singles():
    denoiser, examples = SmallDenoiser(), [example(n, cond=0.1 * n) for n in range(3)]
    recipe = Single(examples, batch_size=3)
    kind = recipe.adapters()["lora"]
    adapter = new_adapter("lora", kind, denoiser.sites, RANK, SEED, denoiser.device)
    with torch.no_grad():
        for parts in adapter.parts.values():
            parts["up"].normal_(generator=torch.Generator().manual_seed(0))
    gates = GatedAdapters(denoiser.sites, {"lora": adapter})
    parameters = list(adapter.parameters())
    rows = recipe.rows(0, SEED)
    with gates.attached():
        batch = torch.autograd.grad(
            row_errors(denoiser, gates, rows, config(), 0).mean(), parameters
        )
        singles = [
            torch.autograd.grad(row_errors(denoiser, gates, [row], config(), 0).sum(), parameters)
            for row in rows
        ]
    for whole, *parts in zip(batch, *singles, strict=True):
        mean = torch.stack(parts).mean(0)
        assert (whole - mean).norm() <= 1e-5 * mean.norm()


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_callback_that_raises_ends_the_run_and_leaves_nothing(end):
    denoiser = SmallDenoiser()
    before = denoiser.layers[0].weight.clone()
    seen = []

    def stop(event) -> None:
        seen.append((event.step, event.steps))
        if event.step == 3:
            raise end

    with pytest.raises(end):
        train(denoiser, denoiser.sites, pair(), config(), [stop])
    assert seen == [(1, STEPS), (2, STEPS), (3, STEPS)]
    assert not denoiser.layers[0]._forward_hooks
    assert torch.equal(denoiser.layers[0].weight, before)


def test_events_carry_the_losses():
    denoiser, events = SmallDenoiser(), []
    trained = train(denoiser, denoiser.sites, pair(), config(), [events.append])
    assert [event.loss for event in events] == trained.losses["loss"]
    assert set(events[0].losses) == {"content"}
    assert set(events[-1].losses) == {"content", "style"}


def test_a_loss_that_is_no_number_stops_the_run_with_advice():
    denoiser = SmallDenoiser()
    broken = Example(torch.full((WIDTH,), math.nan), torch.zeros(WIDTH))
    with pytest.raises(RuntimeError, match=r"finite number, got nan at step 1; lower the learning"):
        train(denoiser, denoiser.sites, Single([broken]), config())


def test_no_site_and_too_large_a_rank_are_refused_by_name():
    denoiser = SmallDenoiser()
    with pytest.raises(ValueError, match="at least one layer, got none"):
        train(denoiser, {}, pair(), config())
    with pytest.raises(ValueError, match=r"2 x rank 5 for width 8; set rank to 4 .*layer_0"):
        train(denoiser, denoiser.sites, pair(), config(rank=5))


class PlaneDenoiser(SmallDenoiser):
    """The same over latents ``(channel, width)``: every channel is denoised alike."""

    def noised(self, latent, noise, sigma):
        return latent + sigma.view(-1, 1, 1) * noise

    def output_scale(self, sigma, like):
        return -sigma.view(-1, 1, 1)

    def denoise(self, x, sigma, conds):
        channels = [super(PlaneDenoiser, self).denoise(x[:, n], sigma, conds) for n in range(2)]
        return torch.stack(channels, dim=1)


def plane(seed: int, mask: list[float] | None = None) -> Example:
    latent = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    counts = None if mask is None else torch.tensor([mask], dtype=torch.float32)
    return Example(latent, torch.zeros(WIDTH), counts)


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_a_mask_weighs_the_mean_as_a_plain_loop_does(outside):
    masks = [[1, 1, 0, 0, 0, 0.5, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0], None]
    rows = [Row("lora", plane(n, mask), {}, 1.0, n) for n, mask in enumerate(masks)]
    denoiser = PlaneDenoiser()
    gates = GatedAdapters(denoiser.sites, {})
    found = row_errors(denoiser, gates, rows, config(outside_mask=outside), 3).tolist()
    for row, mask, error in zip(rows, masks, found, strict=True):
        latent = row.example.latent
        sigma = denoiser.sigma_at(uniform_timestep(SEED, 3, row.sample).view(1))
        x = denoiser.noised(latent[None], noise_for(latent, SEED, 3, row.sample)[None], sigma)
        denoised = denoiser.denoise(x, sigma, [row.example.cond])[0].tolist()
        total = weight = 0.0
        for channel in range(2):
            for cell in range(WIDTH):
                counts = 1.0 if mask is None else outside + (1 - outside) * mask[cell]
                gap = denoised[channel][cell] - latent[channel, cell].item()
                total += counts * (gap / sigma.item()) ** 2
                weight += counts
        assert error == pytest.approx(total / weight, rel=1e-5)


def test_a_mask_of_all_ones_is_none():
    losses = []
    for mask in (None, [1.0] * WIDTH):
        denoiser, recipe = PlaneDenoiser(), Single([plane(1, mask)])
        losses.append(train(denoiser, denoiser.sites, recipe, config()).losses["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_what_is_masked_out_is_not_learnt_from():
    losses = []
    for value in (0.0, 9.0):
        shown = plane(1, [1.0] * 4 + [0.0] * 4)
        # Noise and latent add up: only the target differs where the mask is nought.
        shown.latent[:, 4:] += value
        denoiser = PlaneDenoiser()
        denoiser.layers[0].weight[:4, 4:] = 0.0  # nor does the rest see it
        losses.append(
            row_errors(
                denoiser,
                GatedAdapters(denoiser.sites, {}),
                [Row("lora", shown, {}, 1.0, 0)],
                config(),
                0,
            ).item()
        )
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked_for(share):
    denoiser, steps = SmallDenoiser(), 200
    seen = []
    denoise = denoiser.denoise
    denoiser.denoise = lambda x, sigma, conds: seen.extend(conds) or denoise(x, sigma, conds)
    shown = replace(example(1, cond=0.5), uncond=torch.zeros(WIDTH))
    run = config(steps=steps, caption_dropout=share)
    train(denoiser, denoiser.sites, Single([shown], batch_size=2), run)
    dropped = sum(not bool(cond.any()) for cond in seen) / len(seen)
    assert dropped == pytest.approx(share, abs=0.08)
    if share in (0.0, 1.0):
        assert dropped == share


def test_captions_that_cannot_be_dropped_are_an_error():
    denoiser = SmallDenoiser()
    with pytest.raises(ValueError, match="caption_dropout needs the empty caption of every"):
        train(denoiser, denoiser.sites, Single([example(1)]), config(caption_dropout=0.1))


def test_gradients_are_shortened_to_the_wished_length():
    denoiser, lengths = SmallDenoiser(layers=2), []
    seen: list[torch.Tensor] = []

    def look(event) -> None:
        values = [p.detach().flatten() for p in event.session.parameters.values()]
        seen.append(torch.cat(values).clone())

    run = config(max_grad_norm=0.01, optimizer="SGD", learning_rate=1.0, weight_decay=0.0)
    train(denoiser, denoiser.sites, pair(), run, [look])
    lengths = [(after - before).norm().item() for before, after in pairwise(seen)]
    assert max(lengths) <= 0.01 * (1 + 1e-3)
    assert lengths[-1] == pytest.approx(0.01, rel=1e-3)
