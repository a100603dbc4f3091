"""What the pack's other trainers make, in a fusion: Pair styles, Break-for-Make, plain LoRAs."""

import comfy.lora
import comfy.sd
import folder_paths
import half_inputs
import pair_inputs
import plain_inputs
import pytest
import torch
from concept_encoders import clip_of
from concept_inputs import concept_for
from fusion_families_case import assert_stock_loader_agrees, encoder_of, factor
from fusion_inputs import lora_to_fuse, queue_fusion
from pack.lora_ops import LowRank
from pack.training.files.lora_state import lora_state
from tiny import tiny


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A style of a pair with its content, a Break-for-Make LoRA and an ordinary one, on SD1.5."""
    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("trained"))
    try:
        style, content = pair_inputs.queue("sd15", model=tiny("sd15"), steps=2).result[:2]
        made = half_inputs.b4m("sd15", model=tiny("sd15")).result[0]
        plain = plain_inputs.queue("sd15", model=tiny("sd15"), steps=2).result[0]
    finally:
        folder_paths.output_directory = before
    return {"style": style, "content": content, "made": made, "plain": plain}


def only(found):
    return found[0] if isinstance(found, list) else found


def test_results_of_every_trainer_are_fused(trained):
    wires = [
        lora_to_fuse(only(lora), f"a photo of a {name}", name=name, strength=1.0)
        for name, lora in trained.items()
    ]
    wires.append((concept_for(tiny("sd15"), "sks", seed=1),))
    out = queue_fusion(wires, "sd15", steps=1)
    report = out.result[5]
    for name in trained:
        assert name in out.result[4]
    for layer in report.layers:
        for left, averaged in zip(layer.residuals, layer.average_residuals, strict=True):
            assert left is None or left <= averaged + 1e-6
    assert_stock_loader_agrees("sd15", out)


def test_their_files_say_how_they_are_called(trained):
    """With trigger_prompts left empty, what the trainer wrote into the metadata is taken."""
    for name in ("style", "made", "plain"):
        (concept,) = lora_to_fuse(only(trained[name]), "", name=name)
        assert concept.prompts, name
        assert all(prompt.strip() for prompt in concept.prompts)


def test_a_stronger_style_is_fused_stronger(trained):
    """Strength scales what is reproduced, also where content and style share their layers."""
    norms = []
    for strength in (0.5, 1.0):
        wires = [
            lora_to_fuse(only(trained[name]), f"a {name}", name=name, strength=strength)
            for name in ("style", "content")
        ]
        lora = queue_fusion(wires, "sd15", steps=1).result[2]
        layer = next(key for key in lora if "attn1_to_q.lora_up" in key)
        up, down = (lora[layer.replace("up", part)].float() for part in ("up", "down"))
        norms.append(float((up @ down).norm()))
    assert norms[1] == pytest.approx(2 * norms[0], rel=0.05)


def encoders_lora(clip, seed, rank=3):
    """A random LoRA on the query of every layer of every text encoder, named as core names it."""
    model = clip.cond_stage_model
    names, weights = comfy.lora.model_lora_keys_clip(model, {}), dict(model.named_parameters())
    found = {}
    for name, key in names.items():
        if key.endswith(("q_proj.weight", "SelfAttention.q.weight")) and key not in found.values():
            found[name] = key
    layers = {}
    for number, (name, key) in enumerate(found.items()):
        out, inner = weights[key].shape
        layers[name] = LowRank(
            factor(rank, inner, seed=seed + number), factor(out, rank, seed=seed + 50 + number)
        )
    return lora_state(layers, {})


@pytest.mark.parametrize(("name", "encoders"), [("sd3_read", "lgt"), ("flux_read", "lt")])
def test_text_encoders_of_transformers_are_fused_too(name, encoders):
    clip = encoder_of(name)
    loras = [encoders_lora(clip, seed) for seed in (300, 600)]
    wires = [
        lora_to_fuse(lora, f"a {word}", name=word, strength=1.0)
        for lora, word in zip(loras, ("boat", "tower"), strict=True)
    ]
    out = queue_fusion(wires, name, steps=1, clip=clip)
    (stage,) = out.result[5].stages
    assert (stage.stage, stage.layers) == ("text", len(loras[0]) // 3)
    assert stage.layers == sum({"l": 3, "g": 3, "t": 1}[one] for one in encoders)
    for layer in out.result[5].layers:
        for left, averaged in zip(layer.residuals, layer.average_residuals, strict=True):
            assert left < averaged
    assert clip_of(name.removesuffix("_read")) is clip
    assert_stock_loader_agrees(name, out)


def test_words_are_read_by_the_fused_text_encoder_as_by_their_own():
    """CLIP-L and T5 of Flux: with little damping a concept's own prompt is read as alone."""
    clip = encoder_of("flux_read")
    loras = [encoders_lora(clip, seed) for seed in (300, 600)]
    prompts = ("a big boat", "the tower")
    wires = [
        lora_to_fuse(lora, prompt, name=prompt.split()[-1], strength=1.0)
        for lora, prompt in zip(loras, prompts, strict=True)
    ]
    fused = queue_fusion(wires, "flux_read", steps=1, clip=clip, damping=1e-6).result[1]
    average = patched(clip, [(lora, 0.5) for lora in loras])
    for lora, prompt in zip(loras, prompts, strict=True):
        alone = patched(clip, [(lora, 1.0)])
        wanted, plain, ours, averaged = (read(one, prompt) for one in (alone, clip, fused, average))
        for part in (0, 1):  # T5's tokens, CLIP-L's pooled vector
            off, off_averaged, change = (
                float((one[part] - wanted[part]).norm()) for one in (ours, averaged, plain)
            )
            assert off < 0.5 * off_averaged, (prompt, part)
            assert off < 0.2 * change, (prompt, part)


def read(clip, prompt):
    """A prompt's own words in T5, and the pooled vector.

    The token that ends a text begins alike in all texts, as T5 has no places, and in CLIP-L in all
    of one length: LoRAs that want different things of it can only share it.
    """
    tokens = clip.tokenize(prompt)
    words = len(clip.tokenizer.t5xxl.tokenizer(prompt)["input_ids"]) - 1
    with torch.inference_mode():
        context, options = clip.encode_from_tokens_scheduled(tokens)[0]
    return context[0, :words], options["pooled_output"]


def patched(clip, loras):
    for lora, strength in loras:
        _, clip = comfy.sd.load_lora_for_models(None, clip, dict(lora), 0.0, strength)
    return clip
