"""Concepts in the text encoders of SD3, Flux and Wan: one row per word in each, no patch needed."""

import logging
from types import SimpleNamespace

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from concept_case import apply_concepts, encode
from concept_encoders import ENCODERS, clip_of
from concept_inputs import clip_with, concept_for, rows_of, stock, write_embedding
from guidance_case import ksample
from pack.nodes.text.concept_prompt import PROMPT, bound_prompt, loaded_encoders, text_tokenizers
from pack.nodes.text.layer_contexts import KEY
from pack.training.files.concept import Concept
from pack.training.files.lora_state import LoraState
from tiny import tiny, tiny_clip, tiny_latent

TEXTS = (
    "a photo of <sks> on a beach",
    "(<sks>:1.2), (red:0.8) and <sks>",
    "<sks> BREAK in the snow",
)


def concept_of(encoders, name="sks", layers=1):
    return Concept(name, "dog", rows_of(layers, encoders), LoraState({}))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_wired_encoder_reads_the_words(tmp_path, name):
    clip = clip_with(tmp_path, clip_of(name))
    assert loaded_encoders(clip) == ENCODERS[name]
    concept = concept_of(ENCODERS[name])
    word = write_embedding(tmp_path, "row", concept, 0)
    for text in TEXTS[:2]:
        ((context, options),) = encode(clip, [concept], text)
        ((wanted, wanted_options),) = stock(clip, text.replace("<sks>", f"{word} "))
        assert torch.equal(context, wanted)
        assert options[PROMPT].layers is None
        if wanted_options["pooled_output"] is not None:
            assert torch.equal(options["pooled_output"], wanted_options["pooled_output"])
        without = stock(clip, text.replace("<sks>", ""))[0][0]
        assert without.shape != context.shape or not torch.allclose(without, context, atol=1e-3)


def test_break_begins_a_chunk_for_clip_and_nothing_for_t5():
    clip = clip_of("flux")
    tokens = bound_prompt(clip, TEXTS[2], {"sks": 2}).tokens
    assert [len(chunk) for chunk in tokens["l"]] == [77, 77]
    assert len(tokens["t5xxl"]) == 1
    joined = bound_prompt(clip, "<sks> in the snow", {"sks": 2}).tokens["t5xxl"]
    ids = [
        [t.tolist() if isinstance(t, torch.Tensor) else t for t, _ in chunks[0]]
        for chunks in (tokens["t5xxl"], joined)
    ]
    assert ids[0] == ids[1]


def test_a_concept_with_more_encoders_than_are_wired():
    whole, part = concept_of(ENCODERS["sd3"]), clip_of("sd3 with CLIP-L alone")
    one = Concept("sks", "", {"clip_l": whole.embeddings["clip_l"]}, LoraState({}))
    assert torch.equal(encode(part, [whole])[0][0], encode(part, [one])[0][0])


@pytest.mark.parametrize(
    ("clip", "encoders", "message"),
    [
        ("flux", ["clip_l"], r"this CLIP \(clip_l, t5xxl\), got a concept for clip_l;"),
        ("wan", ["t5xxl"], r"this CLIP \(umt5xxl\), got a concept for t5xxl;"),
        ("wan", ["clip_l", "umt5xxl"], "got a concept for clip_l, umt5xxl"),
        ("sd3", ["clip_l", "clip_g"], r"\(clip_l, clip_g, t5xxl\), got a concept for clip_l, cl"),
    ],
)
def test_a_concept_of_another_text_encoder_is_refused(clip, encoders, message):
    with pytest.raises(ValueError, match=message):
        encode(clip_of(clip), [concept_of(encoders)])


def test_other_text_encoders_are_refused_by_name():
    tokenizer = comfy.text_encoders.qwen_image.QwenImageTokenizer()
    with pytest.raises(ValueError, match="got a CLIP with qwen25_7b; use a base of"):
        text_tokenizers(SimpleNamespace(tokenizer=tokenizer))
    with pytest.raises(ValueError, match="got a CLIP with SimpleNamespace"):
        text_tokenizers(SimpleNamespace(tokenizer=SimpleNamespace()))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_transformer_needs_no_patch(name):
    model = tiny(name)
    concept = concept_for(model)
    patched, clip = apply_concepts(model, [concept], clip=tiny_clip())
    positive, negative = encode(clip, [concept]), stock(clip, "blurry, red")
    samples = torch.zeros_like(tiny_latent(model, 8, 8)["samples"])
    found = ksample(patched, positive, negative, samples)
    assert patched.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY) == []
    by_core, _ = comfy.sd.load_lora_for_models(model, None, dict(concept.lora), 1.0, 1.0)
    plain = [[positive[0][0], {"pooled_output": positive[0][1]["pooled_output"]}]]
    assert torch.equal(found, ksample(by_core, plain, negative, samples))
    other = encode(clip, [concept_for(model, seed=7)])
    with pytest.raises(ValueError, match="got another training of <sks>"):
        ksample(patched, other, negative, samples)


def test_wan_draws_with_a_concept(caplog):
    model, clip = tiny("wan21"), clip_of("wan")
    concept = concept_of(["umt5xxl"])
    patched, text = apply_concepts(model, [concept], clip=clip)
    samples = torch.zeros_like(tiny_latent(model, 8, 8)["samples"])
    with caplog.at_level(logging.WARNING):
        found = ksample(patched, encode(text, [concept]), stock(text, "red"), samples)
    assert caplog.text == ""
    assert found.isfinite().all()
    assert not torch.equal(found, ksample(model, stock(clip, "a dog"), stock(clip, "red"), samples))
