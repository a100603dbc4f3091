"""What fusion says of bad input, each in one sentence, before anything is read or drawn."""

import logging
from dataclasses import replace

import pytest
import torch
from concept_inputs import concept_for
from fusion_inputs import NAME, plain_lora, queue_fusion, two_concepts, wordless
from pack.nodes.bridge import fusion_text
from pack.nodes.bridge.fusion_stages import Stages
from pack.nodes.fusion import ConceptForFusion
from pack.training.state import LoraState
from tiny import tiny, tiny_clip, tiny_vae


@pytest.fixture(scope="module")
def wires():
    return two_concepts()


@pytest.fixture
def unread(monkeypatch):
    """Nothing may be read or drawn."""

    def never(self):
        raise AssertionError("bad input must be refused before anything is read")

    monkeypatch.setattr(Stages, "run", never)


def refused(wires, *says, **changes):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is checked below
        queue_fusion(wires, **changes)
    text = str(error.value)
    assert "\n" not in text
    for part in says:
        assert part in text
    return text


def test_one_concept_is_given_back_as_it_is(wires, unread):
    ((trained,), (plain,)) = wires
    out = queue_fusion(wires[:1]).result
    assert out[2] is trained.lora
    assert "one concept needs no fusion; it is given back as it is" in out[4]
    # an ordinary LoRA's strength is in the file, which the stock loader takes at 1
    weaker = queue_fusion(wires[1:]).result[2]
    key = next(key for key in weaker if "lora_up" in key)
    down, alpha = key.replace("lora_up", "lora_down"), key.partition(".")[0] + ".alpha"
    found = weaker[key] @ weaker[down] * weaker[alpha] / len(weaker[down])
    own = plain.lora
    wanted = 0.7 * own[key] @ own[down] * own[alpha] / len(own[down])
    torch.testing.assert_close(found, wanted)


def test_identical_concepts_count_once(wires, unread):
    out = queue_fusion([wires[0], wires[0]]).result
    assert "sks is connected twice and counts once, with both weights" in out[4]
    assert out[2] is wires[0][0].lora


def test_two_of_one_name(wires, unread):
    other = (concept_for(tiny(NAME), "sks", seed=9),)
    refused([wires[0], other], "every concept must have a name of its own, got <sks> twice")


def test_another_architecture_is_named(wires, unread):
    flux = plain_lora(tiny("flux"), 3, text=False)
    other = wordless(flux, name="fluxy")
    refused([wires[0], other], "'fluxy' must be made for this model, SD1.5", "made for Flux")
    silent = wordless(LoraState(flux, {}), name="fluxy")
    refused([wires[0], silent], "'fluxy': the LoRA must be made for this model, SD1.5")
    misfit = {
        key: value[:, :-1] if "lora_down" in key else value
        for key, value in wires[1][0].lora.items()
    }
    other = wordless(LoraState(misfit, {}), name="narrow")
    refused([wires[0], other], "'narrow': the LoRA must be made for this model", "shapes differ")


def test_no_weight(wires, unread):
    none = [(replace(wire[0], weight=0.0),) for wire in wires]
    refused(none, "at least one concept must have a weight above 0, got only zeros")
    out = queue_fusion([wires[0], none[1]]).result
    assert "boat has weight 0 and is left out" in out[4]


def test_no_text_encoder_and_no_lora(wires, unread):
    refused(wires, "a text encoder is needed to read the prompt, got none", clip=None)
    bare = [(concept_for(tiny(NAME), name, lora=False),) for name in ("ada", "bob")]
    refused(bare, "at least one concept must have a LoRA that changes this model")


def test_a_prompt_without_the_word(wires, unread, caplog):
    elsewhere = ConceptForFusion.execute("a photo of a dog", 1.0, 1.0, "", concept=wires[0])[0]
    refused([elsewhere, wires[1]], "the prompts of <sks> must name it, got 'a photo of a dog'")
    other = wordless(wires[1][0].lora, "a <sks> boat")
    refused([wires[0], other], "every <name> in the prompt must be a connected concept, got <sks>")
    lora = LoraState(wires[1][0].lora, {"modelspec.trigger_phrase": "zwx boat"})
    with caplog.at_level(logging.WARNING):
        wordless(lora, "a photo of a ship")
    assert "has none of the words that the LoRA's file names (zwx boat)" in caplog.text


def test_dora_is_refused_by_name(wires, unread):
    lora = dict(wires[1][0].lora)
    layer = next(key for key in lora if "lora_unet" in key).partition(".")[0]
    lora[f"{layer}.dora_scale"] = torch.ones(len(lora[f"{layer}.lora_up.weight"]), 1)
    refused([wires[0], wordless(LoraState(lora, {}))], "got DoRA in 'boat'", layer[:60])


def test_pictures_need_a_vae(wires, unread):
    shown = wordless(wires[1][0].lora, images=torch.rand(1, 64, 64, 3))
    refused([wires[0], shown], "the pictures of 'boat' need a VAE, got none")
    refused([wires[0], shown], "for latents of 4 channels", vae=tiny_vae(16))


def test_a_size_that_latents_cannot_hold(wires, unread):
    refused(wires, "multiples of 8 pixels, got 68 x 68", size=68)


def test_numbers_that_are_not_finite_name_layer_and_prompt(wires):
    strong = wordless(plain_lora(tiny(NAME), 2, text=False), strength=1e38)
    text = refused([wires[0], strong], "must be finite, got NaN", "of 'boat'", steps=1)
    assert "layer 'diffusion_model." in text
    assert "'a photo of a red boat'" in text


def test_a_context_that_is_not_finite_names_layer_and_prompt(wires, monkeypatch):
    (_, (plain,)) = wires
    broken = [[torch.full((1, 77, 768), float("nan")), {}]]
    monkeypatch.setattr(fusion_text, "encode", lambda clip, concept, prompt: broken)
    says = "context of layer 0 at the prompt 'a photo of a red boat' of 'boat' must be finite"
    with pytest.raises(ValueError, match=says):
        fusion_text.context_rows(tiny_clip(), plain, 4, lambda: None)


def test_no_damping_on_singular_statistics(wires):
    out = queue_fusion(wires, damping=-1.0, steps=1)
    assert {layer.solver for layer in out.result[5].layers if layer.stage == "text"} == {
        "eigenvalues"
    }
    assert "layers with singular statistics solved by eigenvalues" in out.result[4]
    assert "without damping a fused change may be much stronger" in out.result[4]
    assert all(torch.isfinite(value).all() for value in out.result[2].values())
    for layer in out.result[5].layers:
        assert layer.norm < 2 * sum(layer.norms)


def test_no_common_layer(wires):
    lora = wires[1][0].lora
    parts = [
        LoraState({key: value for key, value in lora.items() if word in key}, {})
        for word in ("attn1_to_v", "attn1_to_q")
    ]
    out = queue_fusion(
        [wordless(part, name=name) for part, name in zip(parts, ("one", "two"), strict=True)],
        steps=1,
    )
    assert "no layer is changed by more than one of the concepts" in out.result[4]
    assert {key for key in out.result[2]} == {*parts[0], *parts[1]}


def test_a_fused_file_may_be_fused_again(wires):
    out = queue_fusion(wires, steps=1)
    first = out.result[2]
    # without the prompt of the word, which the file does not hold
    again = ConceptForFusion.execute("", 1.0, 1.0, "both", lora=first)[0]
    assert again[0].prompts == ("a photo of a red boat",)
    third = wordless(plain_lora(tiny(NAME), 7, text=False), "a tower", name="tower")
    twice = queue_fusion([again, third], steps=1)
    assert max(layer.rank for layer in twice.result[5].layers) <= 8 + 3
    # the words of all, of which one carries the change of all
    for wire in (out.result[3], (out.result[3][0], third[0], out.result[3][1])):
        refused([wire], "a change of its own, got 'boat', which is part of a fusion")


def test_a_fused_file_of_words_alone_needs_prompts(wires):
    pair = [wires[0], (concept_for(tiny(NAME), "ada", seed=9),)]
    out = queue_fusion(pair, steps=1)
    with pytest.raises(ValueError, match="a fused file whose words need their concepts"):
        ConceptForFusion.execute("", 1.0, 1.0, "both", lora=out.result[2])
    refused([out.result[3]], "got 'ada', which is part of a fusion; connect the concepts")


def test_a_word_in_prior_prompts_is_refused_before_anything_is_drawn(wires, unread):
    says = "every <name> in the prompt must be a connected concept, got <person>"
    refused(wires, says, prior_prompts="a photo of <person>")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "either a LoRA or a concept must be connected, got none"),
        ({"lora": "plain", "concept": "sks"}, "must be connected, got both"),
        ({"lora": "unsaid"}, "trigger_prompts must say how the LoRA is called up, got none"),
        ({"lora": "plain", "weight": -1.0}, "weight must be 0 or a positive number, got -1.0"),
        ({"lora": "plain", "strength": float("nan")}, "strength must be a finite number, got nan"),
    ],
)
def test_concept_for_fusion_refuses(wires, inputs, says):
    known = {
        "sks": wires[0],
        "plain": wires[1][0].lora,
        "unsaid": LoraState(wires[1][0].lora, {}),
    }
    values = {
        "trigger_prompts": "" if inputs.get("lora") == "unsaid" else "a boat",
        **{"strength": 1.0, "weight": 1.0, "name": ""},
        **{
            key: known.get(value, value) if isinstance(value, str) else value
            for key, value in inputs.items()
        },
    }
    with pytest.raises(ValueError, match=says) as error:
        ConceptForFusion.execute(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "prompts"),
    [
        ({"modelspec.trigger_phrase": "sks dog"}, ("sks dog",)),
        ({"pastiche.style_words": "in ink"}, ("in ink",)),
        ({"ss_tag_frequency": '{"a": {"dog": 2, "sks": 9}}'}, ("sks",)),
    ],
)
def test_prompts_are_read_from_the_file(wires, metadata, prompts):
    lora = LoraState(wires[1][0].lora, metadata)
    ((found,),) = ConceptForFusion.execute("", 0.7, 1.0, "", lora=lora).result
    assert found.prompts == prompts
    assert (found.strength, found.weight, found.words) == (0.7, 1.0, 0)
    assert found.name.startswith("lora_")
