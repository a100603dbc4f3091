"""A run that goes on from any of its steps ends as an undisturbed one, byte for byte."""

import math
from dataclasses import replace

import pytest
import torch
from pack.training import Example, TrainingConfig, train
from pack.training.files.checkpoint import load_checkpoint, save_checkpoint
from pack.training.recipes import EdLora, Pair, Single
from small_denoiser import WIDTH, SmallDenoiser, example, said, words

STEPS = 6
CONFIG = TrainingConfig(steps=STEPS, rank=2, learning_rate=0.02, seed=11, weight_decay=0.1)


def shown(seed: int) -> Example:
    """An example with a mask and an empty caption."""
    mask = torch.rand(WIDTH, generator=torch.Generator().manual_seed(seed)).round()
    empty = torch.full((WIDTH,), -0.3)
    return replace(example(seed, cond=0.1 * seed), mask=mask, uncond=empty)


def pair(style_start_step: int = 2, samples: int = 2) -> Pair:
    pairs = [(shown(1), shown(2)), (shown(3), shown(4))]
    return Pair(pairs, style_start_step, samples=samples)


def single() -> Single:
    return Single([shown(n) for n in range(3)], batch_size=2)


def concept() -> EdLora:
    spoken = [[replace(shown(n), cond=said(n, layer).cond) for layer in (0, 1)] for n in range(3)]
    return EdLora(spoken, words(embedding_stop=0.75), batch_size=2)


CASES = {
    "AdamW": {},
    "AdamW sequential": {"packing": "sequential"},
    "Adafactor": {"optimizer": "Adafactor"},
    "Adafactor sequential": {"optimizer": "Adafactor", "packing": "sequential"},
    "SGD": {"optimizer": "SGD"},
    "average": {"ema_decay": 0.9},
    "average sequential": {"ema_decay": 0.9, "packing": "sequential"},
    "accumulation": {"passes": 2},
    "few rows at once": {"rows_per_pass": 1},
    "clipping": {"max_grad_norm": 0.1},
    "caption dropout": {"caption_dropout": 0.5},
    "outside the mask": {"outside_mask": 0.25},
    "warm-up": {"warmup": 4},
    "linear": {"schedule": "linear", "warmup": 2},
    "cosine": {"schedule": "cosine"},
    "logit-normal": {"timesteps": "logit-normal", "noise_offset": 0.1},
    "shifted": {"timesteps": "shifted"},
    "min-SNR": {"min_snr_gamma": 5.0},
    "everything": {
        "packing": "sequential",
        "ema_decay": 0.9,
        "max_grad_norm": 0.1,
        "caption_dropout": 0.5,
        "warmup": 3,
        "schedule": "cosine",
        "min_snr_gamma": 5.0,
        "noise_offset": 0.1,
    },
}
RECIPES = {"pair": pair, "single": single, "concept": concept}


class Recorder:
    """Keeps the checkpoint of every step, as a file."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}

    def __call__(self, event) -> None:
        path = save_checkpoint(self.folder, event.session.checkpoint(), keep=99)
        self.files[event.step] = path.read_bytes()


def run(config, recipe, folder, start=None):
    denoiser, recorder = SmallDenoiser(layers=2), Recorder(folder)
    trained = train(denoiser, denoiser.sites, recipe, config, [recorder], start=start)
    return trained, recorder.files


def same(one, two) -> bool:
    rows = all(torch.equal(one.embeddings[name], two.embeddings[name]) for name in one.embeddings)
    return (
        one.losses == two.losses
        and rows
        and all(
            torch.equal(factors.up, two.adapters[name][site].up)
            and torch.equal(factors.down, two.adapters[name][site].down)
            for name, layers in one.adapters.items()
            for site, factors in layers.items()
        )
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_from_every_step_exactly(case, recipe, tmp_path):
    config, recipe = replace(CONFIG, **CASES[case]), RECIPES[recipe]()
    undisturbed, files = run(config, recipe, tmp_path / "whole")
    assert sorted(files) == [1, 2, 3, 4, 5, 6]
    for step in range(1, STEPS + 1):
        start = load_checkpoint(tmp_path / "whole" / f"step_{step:08d}.safetensors")
        trained, later = run(config, recipe, tmp_path / str(step), start)
        assert same(trained, undisturbed)
        # Parameters, averages, moments and curves after every later step.
        assert later == {number: files[number] for number in range(step + 1, STEPS + 1)}


@pytest.mark.parametrize("case", CASES)
def test_cases_differ(case, tmp_path):
    """A setting without effect would make its case above worthless."""
    if case in ("AdamW", "few rows at once", "accumulation"):
        return  # these change no result beyond rounding
    plain, _ = run(CONFIG, pair(), tmp_path / "plain")
    other, _ = run(replace(CONFIG, **CASES[case]), pair(), tmp_path / "other")
    assert not same(plain, other)


def test_packings_and_passes_change_no_draw(tmp_path):
    losses = [
        run(replace(CONFIG, **CASES[case]), pair(), tmp_path / case)[0].losses["loss"]
        for case in ("AdamW", "few rows at once", "accumulation")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("linear", "cosine")])
def test_a_finished_run_is_extended_as_if_it_had_never_ended(case, tmp_path):
    config = replace(CONFIG, **CASES[case])
    if config.depends_on_total:
        return
    undisturbed, files = run(replace(config, steps=9), pair(), tmp_path / "long")
    run(config, pair(), tmp_path / "short")
    start = load_checkpoint(tmp_path / "short" / "step_00000006.safetensors")
    trained, later = run(replace(config, steps=9), pair(), tmp_path / "more", start)
    assert same(trained, undisturbed)
    assert later == {number: files[number] for number in (7, 8, 9)}


def test_a_checkpoint_is_a_copy(tmp_path):
    """What goes on from it leaves it alone, and so does the run it was taken from."""
    taken = []
    denoiser = SmallDenoiser()
    train(
        denoiser,
        denoiser.sites,
        pair(),
        CONFIG,
        [lambda event: taken.append(event.session.checkpoint()) if event.step == 3 else None],
    )
    before = {name: tensor.clone() for name, tensor in taken[0].tensors.items()}
    train(denoiser, denoiser.sites, pair(), CONFIG, start=taken[0])
    assert all(torch.equal(taken[0].tensors[name], tensor) for name, tensor in before.items())
    assert len(taken[0].curves["loss"]) == 3


def test_a_checkpoint_that_was_read_in_inference_mode_serves(tmp_path):
    """ComfyUI runs every node in it, training steps out of it."""
    undisturbed, _ = run(CONFIG, pair(), tmp_path)
    with torch.inference_mode():
        start = load_checkpoint(tmp_path / "step_00000003.safetensors")
    trained, _ = run(CONFIG, pair(), tmp_path / "more", start)
    assert same(trained, undisturbed)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path):
    run(CONFIG, pair(), tmp_path)
    start = load_checkpoint(tmp_path / "step_00000003.safetensors")
    denoiser = SmallDenoiser(layers=1)
    with pytest.raises(ValueError, match=r"must hold the .* tensors of this run"):
        train(denoiser, denoiser.sites, pair(), CONFIG, start=start)


class Breaking(SmallDenoiser):
    """A denoiser whose forward breaks, once, at a chosen call."""

    def __init__(self, call: int, error: type[BaseException]):
        super().__init__(layers=2)
        self.left, self.error = call, error

    def denoise(self, x, sigma, conds):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().denoise(x, sigma, conds)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "SGD"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
def test_a_step_of_several_updates_is_taken_back_where_it_breaks_off(optimizer, error, tmp_path):
    """At every forward of the run: what is left is the last whole step's state, bit by bit."""
    config = replace(CONFIG, packing="sequential", steps=4, optimizer=optimizer, ema_decay=0.9)
    recipe = pair(style_start_step=1)
    _, files = run(config, recipe, tmp_path / "whole")
    forwards_by_step = [2, 4, 4, 4]  # two samples, then with their style rows
    for call in range(1, 15):
        denoiser, sessions = Breaking(call, error), []
        with pytest.raises(error):
            train(
                denoiser,
                denoiser.sites,
                recipe,
                config,
                [lambda event, kept=sessions: kept.append(event.session)],
            )
        done = next(step for step in range(4) if sum(forwards_by_step[: step + 1]) >= call)
        assert len(sessions) == done
        if done:
            session = sessions[-1]
            assert session.consistent
            path = save_checkpoint(tmp_path / f"call {call}", session.checkpoint(), keep=1)
            assert path.read_bytes() == files[done]
        assert all(not layer._forward_hooks for layer in denoiser.layers)


def test_an_update_that_breaks_off_is_not_whole(monkeypatch):
    denoiser, sessions = SmallDenoiser(), []

    def look(event) -> None:
        sessions.append(event.session)
        if event.step == 3:
            monkeypatch.setattr(event.session.optimizer, "step", broken)

    def broken() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        train(denoiser, denoiser.sites, pair(), CONFIG, [look])
    assert not sessions[-1].consistent


class Spoilt(SmallDenoiser):
    """A denoiser that gives NaN in the forward or in the backward of its third call."""

    def __init__(self, where: str):
        super().__init__(layers=2)
        self.where, self.left = where, 3

    def denoise(self, x, sigma, conds):
        denoised = super().denoise(x, sigma, conds)
        self.left -= 1
        if self.left == 0 and self.where == "loss":
            return denoised * math.nan
        if self.left == 0:
            denoised.register_hook(lambda gradient: gradient * math.inf)
        return denoised


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_stops_the_run_before_the_update(where, tmp_path):
    _, files = run(CONFIG, pair(), tmp_path / "whole")
    denoiser, sessions = Spoilt(where), []
    with pytest.raises(RuntimeError, match=rf"the {where} must stay .*at step 3; lower the learn"):
        train(
            denoiser, denoiser.sites, pair(), CONFIG, [lambda event: sessions.append(event.session)]
        )
    path = save_checkpoint(tmp_path / "kept", sessions[-1].checkpoint(), keep=1)
    assert path.read_bytes() == files[2]


def test_what_has_diverged_is_neither_kept_nor_returned():
    denoiser, sessions = SmallDenoiser(), []
    bright = Example(torch.full((WIDTH,), 1e4), torch.zeros(WIDTH))
    with pytest.raises(RuntimeError, match=r"what is learnt must be finite numbers.*after step 1"):
        train(
            denoiser,
            denoiser.sites,
            Single([bright]),
            replace(CONFIG, optimizer="SGD", learning_rate=3e38, steps=1),
            [lambda event: sessions.append(event.session)],
        )
    with pytest.raises(RuntimeError, match="finite numbers"):
        sessions[0].checkpoint()


def test_a_callback_that_returns_true_ends_the_run_as_finished():
    denoiser, seen = SmallDenoiser(), []

    def look(event) -> None:
        seen.append(event.step)

    trained = train(denoiser, denoiser.sites, pair(), CONFIG, [lambda event: event.step == 4, look])
    assert (trained.steps, seen) == (4, [1, 2, 3, 4])
    assert len(trained.losses["loss"]) == 4
    short = train(denoiser, denoiser.sites, pair(), replace(CONFIG, steps=4))
    assert same(trained, short)


def test_looking_at_the_average_changes_nothing(tmp_path):
    config = replace(CONFIG, ema_decay=0.9)
    undisturbed, files = run(config, pair(), tmp_path / "whole")
    denoiser, recorder = SmallDenoiser(layers=2), Recorder(tmp_path / "looked")
    looks = []
    trained = train(
        denoiser,
        denoiser.sites,
        pair(),
        config,
        [lambda event: looks.append(event.session.trained()) and None, recorder],
    )
    assert same(trained, undisturbed)
    assert recorder.files == files
    assert same(looks[-1], trained)
