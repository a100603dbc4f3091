"""Concepts on a MODEL, against hooks that exchange each layer's context from outside."""

import comfy.sd
import pytest
import torch
from apply_concept_refusals import REFUSED, three_concepts
from concept_case import (
    EXACT,
    LAYERS,
    LONG,
    NAME,
    NEGATIVE,
    PROMPT_TEXT,
    apply_concepts,
    contexts_by_hook,
    contexts_of,
    encode,
    latent,
)
from concept_inputs import concept_for, rows_of, stock
from gated_loras import patched, relative
from guidance_case import ksample, observed
from tiny import tiny, tiny_clip, weights_hash


@pytest.fixture(scope="module")
def concepts():
    return three_concepts()


@pytest.mark.parametrize("batch", [1, 2])
def test_every_layer_reads_its_own_context(concepts, batch):
    model, clip = apply_concepts(tiny(NAME), concepts[:1])
    positive, negative = encode(clip, concepts[:1]), encode(clip, concepts[:1], NEGATIVE)
    with observed(model) as rows:
        found = ksample(model, positive, negative, latent(batch))
    assert rows == [2 * batch] * 4
    base = patched(tiny(NAME), {k: v for k, v in concepts[0].lora.items() if "lora_unet" in k})
    with contexts_by_hook(base, [contexts_of(positive), contexts_of(negative)]):
        wanted = ksample(base, positive, negative, latent(batch))
    assert relative(found, wanted) < EXACT
    assert relative(found, ksample(base, positive, negative, latent(batch))) > 1e-3


def test_equal_layers_are_plain_conditioning(concepts):
    same = {"clip_l": rows_of(1)["clip_l"].expand(-1, LAYERS, -1).clone()}
    equal = concept_for(tiny(NAME), rows=same)
    model, clip = apply_concepts(tiny(NAME), [equal])
    positive = encode(clip, [equal])
    negative = stock(clip, NEGATIVE)
    plain = [[contexts_of(positive)[:1], {}]]
    found = ksample(model, positive, negative, latent())
    assert relative(found, ksample(model, plain, negative, latent())) < 1e-6


def test_strength_0_is_the_base(concepts):
    base = tiny(NAME)
    prompts = stock(tiny_clip(), "a dog"), stock(tiny_clip(), NEGATIVE)
    wanted = ksample(base, *prompts, latent())
    model, clip = apply_concepts(base, concepts, 0.0, 0.0)
    assert torch.equal(stock(clip, "a dog")[0][0], prompts[0][0][0])
    assert torch.equal(ksample(model, *prompts, latent()), wanted)
    without = [encode(clip, concepts, "a dog"), encode(clip, concepts, NEGATIVE)]
    assert torch.equal(ksample(model, *without, latent()), wanted)
    # The words alone carry the concept, as the authors check it.
    assert relative(ksample(model, encode(clip, concepts), prompts[1], latent()), wanted) > 1e-3


def test_the_strengths_are_those_of_the_lora(concepts):
    both = comfy.sd.load_lora_for_models(tiny(NAME), tiny_clip(), dict(concepts[0].lora), 0.5, 0.25)
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.5, 0.25)
    prompts = [stock(clip, "a dog"), stock(clip, NEGATIVE)]
    assert torch.equal(prompts[0][0][0], stock(both[1], "a dog")[0][0])
    assert not torch.equal(prompts[0][0][0], stock(tiny_clip(), "a dog")[0][0])
    assert torch.equal(ksample(model, *prompts, latent()), ksample(both[0], *prompts, latent()))


def test_without_the_model_patch_the_mean_is_drawn(concepts):
    clip = tiny_clip()
    positive = encode(clip, concepts[:1])
    found = ksample(tiny(NAME), positive, stock(clip, NEGATIVE), latent())
    plain = [[positive[0][0], {}]]
    assert torch.equal(found, ksample(tiny(NAME), plain, stock(clip, NEGATIVE), latent()))


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (PROMPT_TEXT, NEGATIVE),
        (PROMPT_TEXT, LONG),
        (f"{LONG} <sks>", NEGATIVE),
        (PROMPT_TEXT, f"{LONG} <sks>"),
        ("a dog", "a <sks>"),
    ],
)
@pytest.mark.parametrize("own_node", [True, False])
def test_positive_and_negative_share_one_call(concepts, positive, negative, own_node):
    model, clip = apply_concepts(tiny(NAME), concepts[:1], 0.0)
    pair = [encode(clip, concepts[:1], positive), encode(clip, concepts[:1], negative)]
    if not own_node and "<" not in negative:
        pair[1] = stock(clip, negative)
    with observed(model) as rows:
        found = ksample(model, *pair, latent())
    assert rows == [2] * 4
    base = tiny(NAME)
    with contexts_by_hook(base, [contexts_of(prompt) for prompt in pair]):
        wanted = ksample(base, *pair, latent())
    assert relative(found, wanted) < EXACT


def test_three_concepts_in_one_prompt(concepts):
    model, clip = apply_concepts(tiny(NAME), concepts)
    positive = encode(clip, concepts, "<sks> beside (<ada>:1.2) and <tom> BREAK on <sks> beach")
    found = ksample(model, positive, stock(clip, NEGATIVE), latent())
    base = tiny(NAME)
    for concept in concepts:
        base = patched(base, {k: v for k, v in concept.lora.items() if "lora_unet" in k})
    with contexts_by_hook(base, [contexts_of(positive), contexts_of(stock(clip, NEGATIVE))]):
        wanted = ksample(base, positive, stock(clip, NEGATIVE), latent())
    assert relative(found, wanted) < EXACT
    first, text = apply_concepts(tiny(NAME), concepts[:1])
    second, text = apply_concepts(first, concepts[1:], clip=text)  # one node after the other
    again = ksample(second, encode(text, concepts, "<sks> <ada> <tom>"), [], latent(), cfg=1.0)
    at_once = ksample(model, encode(clip, concepts, "<sks> <ada> <tom>"), [], latent(), cfg=1.0)
    assert torch.equal(again, at_once)


def test_two_concepts_in_two_samplers_of_one_graph(concepts):
    base, negative = tiny(NAME), stock(tiny_clip(), NEGATIVE)
    before = weights_hash(base)

    def drawn(number):
        model, clip = made[number]
        text = f"a <{concepts[number].name}> dog"
        return ksample(model, encode(clip, [concepts[number]], text), negative, latent())

    made = [apply_concepts(base, [concept]) for concept in concepts[:2]]
    wanted = [drawn(0)]
    made = [apply_concepts(base, [concept]) for concept in concepts[:2]]
    wanted.append(drawn(1))
    plain = ksample(base, stock(tiny_clip(), "a dog"), negative, latent())
    found = [drawn(0), drawn(1), drawn(0)]
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[2], wanted[0])
    assert torch.equal(ksample(base, stock(tiny_clip(), "a dog"), negative, latent()), plain)
    base.unpatch_model()
    for model, _ in made:
        model.unpatch_model()
    assert weights_hash(base) == before


@pytest.mark.parametrize(("action", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_belong_together_is_refused(concepts, action, message):
    with pytest.raises(ValueError, match=message) as error:
        action(concepts)
    assert "\n" not in str(error.value)
