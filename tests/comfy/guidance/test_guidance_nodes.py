"""The two nodes: what they take, what they refuse, what they say."""

import logging

import pytest
import torch
from guidance_case import lora_of, prompts, styled
from pack.nodes.guidance.nodes import ApplyStyleGuidance, StylePrompts
from pack.training.files.lora_state import LoraState
from tiny import tiny, tiny_clip

from nodes import CLIPTextEncode

TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def test_inputs_are_in_the_agreed_order():
    schema = ApplyStyleGuidance.GET_SCHEMA()
    assert [item.id for item in schema.inputs] == [
        "model",
        "style_lora",
        "style",
        "style_scale",
        "start_percent",
        "end_percent",
        "lora_strength",
        "schedule",
        "mask",
    ]
    defaults = {item.id: getattr(item, "default", None) for item in schema.inputs}
    assert (defaults["style_scale"], defaults["start_percent"]) == (3.0, 0.2)
    assert (defaults["end_percent"], defaults["lora_strength"]) == (1.0, 1.0)


def refused(match, model="sd15", lora=None, **options):
    _, _, style = prompts(model)
    with pytest.raises(ValueError, match=match) as caught:
        styled(tiny(model), lora_of(model) if lora is None else lora, style, **options)
    assert "\n" not in str(caught.value)


def test_lora_of_another_architecture_is_refused():
    refused("must be made for this architecture, SD1.5", lora=lora_of("flux"))
    refused("must be made for this architecture, Flux", "flux", lora=lora_of("sd15"))


@pytest.mark.parametrize("text", ["0.5", "a:1", "0:1 0.5:0", "2:1", "0.5:1, 0.2:1"])
def test_schedule_with_a_mistake_is_refused(text):
    refused("schedule must", schedule=text)


def test_window_that_ends_before_it_starts_is_refused():
    refused("end_percent must not be smaller", start=0.5, end=0.2)


def test_text_encoder_layers_are_left_out_and_named(caplog):
    lora = dict(lora_of("sd15"))
    lora |= {
        f"{TEXT_LAYER}.lora_down.weight": torch.zeros(4, 768),
        f"{TEXT_LAYER}.lora_up.weight": torch.zeros(768, 4),
    }
    _, _, style = prompts("sd15")
    with caplog.at_level(logging.INFO):
        styled(tiny("sd15"), lora, style)
    assert "leaves out the LoRA's 1 text encoder layers" in caplog.text


def test_the_given_model_stays_plain():
    _, _, style = prompts("sd15")
    model = tiny("sd15")
    styled(model, lora_of("sd15"), style)
    assert not model.wrappers.get("outer_sample")


def test_prompts_are_plain_and_with_the_style_words():
    clip = tiny_clip()
    plain, with_style, text = StylePrompts.execute(clip, "a dog", "in ink style").args
    assert text == "a dog in ink style"
    for found, prompt in ((plain, "a dog"), (with_style, text)):
        (wanted,) = CLIPTextEncode().encode(clip, prompt)
        assert torch.equal(found[0][0], wanted[0][0])
        assert torch.equal(found[0][1]["pooled_output"], wanted[0][1]["pooled_output"])


def test_style_words_come_from_the_lora_when_left_empty():
    lora = LoraState({}, {"pastiche.style_words": "in chalk style"})
    assert StylePrompts.execute(tiny_clip(), "a dog ", " ", lora).args[2] == "a dog in chalk style"
    assert StylePrompts.execute(tiny_clip(), "a dog", "in ink", lora).args[2] == "a dog in ink"


@pytest.mark.parametrize("lora", [None, LoraState({}), {}], ids=["none", "no words", "plain dict"])
def test_no_style_words_at_all_is_one_sentence(lora):
    with pytest.raises(ValueError, match="style_words must name the style") as caught:
        StylePrompts.execute(tiny_clip(), "a dog", "", lora)
    assert "\n" not in str(caught.value)


def test_no_text_encoder_is_one_sentence():
    with pytest.raises(ValueError, match="a text encoder is needed"):
        StylePrompts.execute(None, "a dog", "in ink style")
