"""Learnt words in the one loop: only they change, they stop in time, and go on exactly."""

from dataclasses import replace

import pytest
import torch
from pack.lora_ops.vocabulary_density import VocabularyDensity
from pack.training import Site, TrainingConfig, train
from pack.training.recipes import EdLora
from pack.training.session import Session
from pack.training.words import LearntWords, Words
from small_denoiser import WIDTH, SmallDenoiser, example, said, words

CONFIG = TrainingConfig(steps=6, rank=2, learning_rate=0.02, seed=11, weight_decay=0.1)


def recipe(**settings) -> EdLora:
    return EdLora([[said(1), said(1, 1)], [said(2)]], words(**settings), batch_size=2)


def run(config=CONFIG, made=None, sites=None, callbacks=(), **more):
    denoiser = SmallDenoiser(layers=2)
    return train(denoiser, sites or denoiser.sites, made or recipe(), config, callbacks, **more)


def test_the_rows_that_captions_hold_are_learnt_and_no_other():
    first_alone = EdLora([[said(1)], [said(2)]], words(), batch_size=2)
    learnt = run(replace(CONFIG, weight_decay=0.0), first_alone).embeddings["text"]
    start = words().starts["text"]
    assert not torch.equal(learnt[0], start[0])
    assert torch.equal(learnt[1], start[1])  # no caption held it


def test_a_recipe_without_words_learns_none():
    single = EdLora([[example(1)]], Words())
    assert run(made=single).embeddings == {}


def test_the_rate_of_the_words_is_their_own():
    step = replace(CONFIG, steps=1, weight_decay=0.0)
    for share in (1.0, 0.25):
        rates = {"text": share * 0.02}
        learnt = run(step, EdLora([[said(1)]], words(learning_rates=rates))).embeddings["text"]
        moved = (learnt[0] - words().starts["text"][0]).abs()
        # Adam's first step is the learning rate in every entry.
        assert torch.allclose(moved, torch.full((WIDTH,), 0.02 * share), rtol=1e-3)


def test_the_rate_of_a_site_is_its_own():
    denoiser = SmallDenoiser(layers=2)
    first, second = denoiser.sites
    sites = {
        first: denoiser.sites[first],
        second: replace(denoiser.sites[second], learning_rate=0.0),
    }
    learnt = train(denoiser, sites, recipe(), replace(CONFIG, steps=3))
    factors = learnt.adapters["concept"]
    assert factors[first].up.any()
    assert not factors[second].up.any()


def test_equal_rates_are_one_group():
    denoiser = SmallDenoiser(layers=2)
    session = Session(denoiser, denoiser.sites, recipe(), CONFIG)
    assert [group["initial_lr"] for group in session.optimizer.param_groups] == [
        CONFIG.learning_rate
    ] * 2
    assert list(session.parameters)[-1] == "embeddings/text"


def test_the_words_stop_at_their_norm_and_stay_bit_identical():
    seen = []

    def watch(event):
        rows = event.session.words.parameters["text"]
        seen.append((rows.detach().clone(), float(rows.detach().norm(dim=-1).mean() / 0.5)))

    stop = 0.9
    long = replace(CONFIG, steps=30, learning_rate=0.05)
    trained = run(long, recipe(embedding_stop=stop), callbacks=[watch])
    reached = next(step for step, (_, share) in enumerate(seen) if share >= stop)
    assert 0 < reached < 25
    assert all(torch.equal(rows, seen[reached][0]) for rows, _ in seen[reached:])
    assert torch.equal(trained.embeddings["text"], seen[reached][0])
    never = run(long, recipe()).embeddings["text"]
    assert never.norm(dim=-1).mean() / 0.5 > stop  # it would have gone on


def test_the_lora_goes_on_once_the_words_have_stopped():
    short, long = (
        run(replace(CONFIG, steps=steps), recipe(embedding_stop=0.01)).adapters["concept"]
        for steps in (3, 6)
    )
    for site, factors in long.items():
        assert not torch.equal(factors.up, short[site].up)


def test_a_stop_needs_the_norm_of_the_vocabulary():
    with pytest.raises(ValueError, match="norm of a row of every vocabulary, got none for text"):
        Words({"text": torch.ones(2, 3)}, embedding_stop=1.0)


@pytest.mark.parametrize("optimizer", ["Scaled SGD", "Scaled AdamW", "LoRA-RITE"])
def test_preconditioned_optimisers_refuse_words_in_a_sentence(optimizer):
    with pytest.raises(ValueError, match="no pair of factors where words are learnt, got"):
        run(replace(CONFIG, optimizer=optimizer))


def test_preconditioned_optimisers_take_a_site_s_rate():
    """What a text encoder's layers learn counts for pairs of factors too."""
    denoiser = SmallDenoiser(layers=2)
    sites = {name: replace(site, learning_rate=0.0) for name, site in denoiser.sites.items()}
    single = EdLora([[example(1)]], Words())
    trained = train(denoiser, sites, single, replace(CONFIG, optimizer="Scaled AdamW"))
    assert not any(factors.up.any() for factors in trained.adapters["concept"].values())


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "SGD"])
def test_the_average_and_every_plain_optimiser_hold_for_words(optimizer):
    averaged = run(replace(CONFIG, optimizer=optimizer, ema_decay=0.9)).embeddings["text"]
    last = run(replace(CONFIG, optimizer=optimizer)).embeddings["text"]
    start = words().starts["text"]
    assert 0 < (averaged - start).norm() < (last - start).norm()


def test_a_step_that_breaks_off_leaves_the_words_alone():
    class BrokenError(Exception):
        pass

    kept = []

    def broken(learnt):
        if len(kept) == 2:
            raise BrokenError
        return learnt["text"][0]

    caption = said(1).cond
    type(caption).__call__, before = lambda self, learnt: broken(learnt), type(caption).__call__
    try:
        with pytest.raises(BrokenError):
            run(
                replace(CONFIG, packing="sequential"),
                EdLora([[said(1)]], words()),
                callbacks=[lambda event: kept.append(event.session.checkpoint())],
            )
    finally:
        type(caption).__call__ = before
    assert [checkpoint.step for checkpoint in kept] == [1, 2]


def test_a_number_that_is_not_finite_is_said():
    broken = replace(words(), starts={"text": torch.full((2, WIDTH), float("nan"))})
    with pytest.raises(RuntimeError, match="must stay a finite number"):
        run(made=EdLora([[said(1)]], broken))


def test_attention_to_the_words_is_asked_of_the_denoiser():
    class Showing(SmallDenoiser):
        def attention(self):
            return [torch.ones(len(self.seen[-1]), 2, 4, 4)]

    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    rows = LearntWords(words(attention_weight=0.5))
    denoiser = Showing()
    denoiser.seen.append(torch.zeros(2, WIDTH))
    costs = rows.penalties(denoiser, [mask, None])
    assert costs.tolist() == [pytest.approx(0.5 * 2), 0.0]  # a row without a mask costs nothing
    assert rows.penalties(denoiser, [None, None]) is None
    assert LearntWords(words()).penalties(denoiser, [mask, None]) is None


def test_a_recipe_without_pictures_or_wordings_is_refused():
    with pytest.raises(ValueError, match="at least one picture, each with a caption"):
        EdLora([], words())
    with pytest.raises(ValueError, match="at least one picture, each with a caption"):
        EdLora([[said(1)], []], words())
    with pytest.raises(ValueError, match="mirrored one, got 1 for 2"):
        EdLora([[said(1)], [said(2)]], words(), mirrored=[[said(1)]])


def test_pictures_come_once_a_round_and_every_wording_in_time():
    wordings = [[said(1, layer) for layer in (0, 1)] for _ in range(3)]
    made = EdLora(wordings, words(), batch_size=3)
    seen = set()
    for step in range(20):
        rows = made.rows(step, 5)
        pictures = [
            next(n for n, one in enumerate(wordings) if any(row.example is w for w in one))
            for row in rows
        ]
        assert sorted(pictures) == [0, 1, 2]
        seen |= {id(row.example) for row in rows}
    assert len(seen) == 6


def test_a_site_of_a_rate_of_its_own_is_equal_otherwise():
    module = SmallDenoiser().layers[0]
    assert Site(module, (8, 8)) == Site(module, (8, 8), learning_rate=None)


def test_rows_are_drawn_to_the_vocabulary_alike_in_every_row_of_a_batch():
    vocabulary = VocabularyDensity.of(torch.zeros(5, WIDTH), 0.5)
    made = words(density_weight=0.25, vocabularies={"text": vocabulary})
    found = LearntWords(made).penalties(None, [None, None])
    rows = LearntWords(made).parameters["text"]
    # One kernel, at 0: its share is exp(-x^2 / (2 h^2)), summed over the dimensions.
    wanted = -(-rows.square() / 0.5).exp().mean(dim=-1).log().sum() * 0.25
    assert torch.allclose(found, wanted, rtol=1e-5)
    step = replace(CONFIG, steps=1, weight_decay=0.0)
    mapping = {"text": vocabulary}
    drawn, free = (
        run(step, recipe(density_weight=weight, vocabularies=mapping)).losses["loss"][0]
        for weight in (0.25, 0.0)
    )
    # Once a step, however many rows it has.
    assert drawn - free == pytest.approx(wanted.item(), rel=1e-4)


def test_layers_go_without_the_adapter_in_their_share_of_the_steps():
    made = replace(recipe(), dropped=("a", "b"), text_dropout=0.3)
    gates = [[row.gates["concept"].off for row in made.rows(step, 4)] for step in range(600)]
    assert all(one == other for one, other in gates)  # a step's rows go together
    for site in ("a", "b"):
        assert sum(site in one for one, _ in gates) / 600 == pytest.approx(0.3, abs=0.06)
    assert {one for one, _ in gates} == {frozenset(), *map(frozenset, ("a", "b", "ab"))}
    assert not any(row.gates["concept"].off for row in recipe().rows(0, 4))


def test_a_layer_without_its_adapter_learns_nothing_in_that_step():
    denoiser = SmallDenoiser(layers=2)
    first, second = denoiser.sites
    made = replace(recipe(), dropped=(first,), text_dropout=0.999999)
    learnt = train(denoiser, denoiser.sites, made, replace(CONFIG, steps=3)).adapters["concept"]
    assert not learnt[first].up.any()
    assert learnt[second].up.any()


def test_a_run_that_drops_layers_goes_on_to_the_same_numbers():
    denoiser = SmallDenoiser(layers=2)
    made = replace(recipe(), dropped=tuple(denoiser.sites), text_dropout=0.5)
    whole = run(made=made)
    kept = []
    run(made=made, callbacks=[lambda event: kept.append(event.session.checkpoint())])
    for start in kept[:-1]:
        again = run(made=made, start=start)
        for site, factors in whole.adapters["concept"].items():
            assert torch.equal(factors.up, again.adapters["concept"][site].up)
            assert torch.equal(factors.down, again.adapters["concept"][site].down)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_no_step_is_left_where_every_layer_is_dropped(share):
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        replace(recipe(), dropped=("a",), text_dropout=share)
