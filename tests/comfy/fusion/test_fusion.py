"""Concepts and LoRAs fused on a tiny SD1.5, through all three stages."""

import json
from statistics import median

import comfy.sample
import comfy.sd
import pytest
import torch
from concept_case import NEGATIVE, encode
from concept_inputs import stock
from fusion_inputs import (
    NAME,
    lora_to_fuse,
    plain_lora,
    queue_fusion,
    set_output_folder,
    two_concepts,
)
from gated_loras import hook_count, relative
from guidance_case import ksample
from pack.lora_ops import delta
from pack.nodes.fusion.stages import Stages
from pack.nodes.fusion.text import bound_tokens, context_rows
from pack.nodes.text.concept_prompt import PROMPT as PROMPT_OPTION
from pack.training.files.lora_state import LoraState
from pack.training.randomness import generator_for
from pack.training.runs.fusion_store import DIGEST_FILE, FusionStore
from pair_inputs import picture, vae_for
from tiny import restore_shared, tiny, tiny_clip, weights_hash

LATENT = torch.zeros(1, 4, 8, 8)
PHOTO_OF_A = [49406, 1125, 539, 320]
PROMPT = "a photo of a red boat"


@pytest.fixture(scope="module")
def wires():
    return two_concepts()


@pytest.fixture(scope="module", params=["own", "paper"])
def fused(request, wires, tmp_path_factory):
    """The node's outputs, and the folder of the statistics."""
    folder = tmp_path_factory.mktemp("fused")
    set_output_folder(folder)
    restore_shared()
    before = weights_hash(tiny(NAME))
    out = queue_fusion(wires, activations=request.param, statistics="a Gram per concept")
    (place,) = (folder / "pastiche").glob("fusion-*")
    assert hook_count(tiny(NAME)) == 0
    restore_shared()
    assert weights_hash(tiny(NAME)) == before
    return request.param, out.result, place


def on_base(lora, strength=1.0):
    return comfy.sd.load_lora_for_models(tiny(NAME), tiny_clip(), dict(lora), strength, strength)


def drawn(model, clip, prompt):
    return ksample(model, stock(clip, prompt), stock(clip, NEGATIVE), LATENT)


def test_the_lora_in_the_stock_loader_is_the_model_output(fused):
    _, (model, clip, lora, *_), _ = fused
    stock_model, stock_clip = on_base(lora)
    for prompt in (PROMPT, "a dog"):
        ours, theirs = stock(clip, prompt)[0][0], stock(stock_clip, prompt)[0][0]
        assert relative(ours, theirs) < 1e-5
        found = drawn(model, clip, prompt)
        assert relative(found, drawn(stock_model, stock_clip, prompt)) < 1e-5
        assert relative(found, drawn(tiny(NAME), tiny_clip(), prompt)) > 1e-3


def test_the_words_of_all_are_drawn_with_the_outputs(fused, wires):
    _, (model, clip, _, concepts, *_), _ = fused
    assert [concept.name for concept in concepts] == ["sks", "boat"]
    positive = encode(clip, concepts, "a photo of <sks>")
    found = ksample(model, positive, stock(clip, ""), LATENT)
    plain = ksample(model, encode(clip, concepts, "a photo of a red boat"), stock(clip, ""), LATENT)
    assert found.isfinite().all()
    assert relative(found, plain) > 1e-3
    own = on_base(wires[0][0].lora)
    without_words = ksample(own[0], positive, stock(clip, ""), LATENT)
    assert relative(found, without_words) > 1e-3  # the layers read rows of their own


def test_with_little_damping_a_concepts_own_words_are_read_as_alone(wires):
    """The first layer sees some words in both concepts' prompts, others in one's alone."""
    (_, (plain,)) = wires
    fusion = queue_fusion(wires, damping=1e-6, steps=1).result[2]
    encoder = tiny_clip().cond_stage_model.clip_l.transformer.text_model.encoder
    seen = []
    hook = encoder.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0, :8].clone())
    )
    tiny_clip().encode_from_tokens(tiny_clip().tokenize(PROMPT))
    hook.remove()

    def change(lora, strength):
        name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        down, up = lora[f"{name}.lora_down.weight"], lora[f"{name}.lora_up.weight"]
        return seen[0] @ (strength * lora[f"{name}.alpha"] / len(down) * up @ down).mT

    found, wanted = change(fusion, 1.0), change(plain.lora, 0.7)
    errors = [relative(*pair) for pair in zip(found, wanted, strict=True)]
    assert max(errors[5:]) < 1e-3  # red, boat and the end of the text
    assert errors[0] > 0.3  # the start of the text is the same in every prompt


def test_with_little_damping_each_lora_draws_its_own_picture_as_alone():
    """Fewer places than the layers are wide, in two steps of a small picture."""
    loras = [
        {key: value for key, value in plain_lora(tiny(NAME), seed).items() if "attn1" in key}
        for seed in (2, 3)
    ]
    wires = [
        lora_to_fuse(LoraState(lora, {}), f"a {word}", name=word, strength=1.0)
        for lora, word in zip(loras, ("boat", "tower"), strict=True)
    ]
    model, clip, *_ = queue_fusion(wires, damping=1e-7).result
    halves = comfy.sd.load_lora_for_models(*on_base(loras[0], 0.5), loras[1], 0.5, 0.5)
    for (concept,) in wires:
        base = own_picture(tiny(NAME), tiny_clip(), concept)
        wanted = own_picture(*on_base(concept.lora), concept) - base
        # With so little damping it is rounding, so the number of threads, that decides: up to 0.026.
        assert relative(own_picture(model, clip, concept) - base, wanted) < 0.04
        assert relative(own_picture(*halves, concept) - base, wanted) > 0.3


def own_picture(model, clip, concept):
    """Return what a model makes of a concept's first prompt and noise, as fusion draws it."""
    (prompt,) = concept.prompts
    seed = generator_for(5, "fusion", concept.digest, prompt, 0, 0).initial_seed()
    cond = stock(clip, prompt)
    noise = comfy.sample.prepare_noise(LATENT, seed)
    sampler = ("dpmpp_2m", "normal")
    return comfy.sample.sample(model, noise, 2, 1.0, *sampler, cond, cond, LATENT, seed=seed)


def test_the_report_measures_what_is_lost(fused):
    *_, text, report = fused[1]
    assert [stage.stage for stage in report.stages] == ["text", "cross", "spatial"]
    for number in range(2):
        lost = [layer.residuals[number] for layer in report.layers]
        averaged = [layer.average_residuals[number] for layer in report.layers]
        assert median(lost) < 0.05
        assert all(ours < theirs for ours, theirs in zip(lost, averaged, strict=True))
    assert "sks: words and LoRA at strength 1, weight 1, 40 layers fused" in text
    assert "is lost in the median layer" in text


def test_ranks_are_the_sum_at_most(fused):
    assert {layer.rank for layer in fused[1][5].layers} == {7, 8}  # 4 + 3; 4 + 4 in the text
    assert {key.rpartition(".")[2] for key in fused[1][2]} == {"weight", "alpha"}


def test_bookkeeping(fused, wires):
    """F4: the layers of every stage and the rows that each concept gives."""
    mode, (_, _, lora, *_, report), place = fused
    counts = {stage.stage: stage.layers for stage in report.stages}
    assert counts == {"text": 8, "cross": 8, "spatial": 24}  # 4, 2 and 6 of a block
    assert len(lora) == 3 * 40
    spatial = FusionStore(place / f"spatial {mode}", digest_of(place / f"spatial {mode}")).sum()
    assert len(spatial.grams) == 16  # attn1's input and output, attn2's query and output
    text = FusionStore(place / "text", digest_of(place / "text"))
    assert len(text.sum().grams) == 4
    rows = set()
    for digest in text.sum().weights:
        rows |= {gram.rows for gram in text.gram(digest).values()}
    # two prompts of 7 and 4 tokens, four bindings; "a photo of a red boat" with its two ends
    assert rows == {(7 + 4) * 4, 8}
    for digest in spatial.weights:
        store = FusionStore(place / f"spatial {mode}", digest_of(place / f"spatial {mode}"))
        assert {gram.rows for gram in store.gram(digest).values()} == {2 * 8 * 8}


def digest_of(folder):
    return json.loads((folder / DIGEST_FILE).read_text())["digest"]


def test_the_prompts_of_a_concept(wires):
    ((trained,), _) = wires
    for layer, tokens in enumerate(bound_tokens(tiny_clip(), trained, "photo of a <sks>")):
        ids = [token for token, _ in tokens["l"][0]]
        assert [ids[0], *ids[1:4]] == PHOTO_OF_A
        for word in (0, 1):
            assert torch.equal(ids[4 + word], trained.embeddings["clip_l"][word, layer])
        assert ids[6] == 49407
    rows = context_rows(tiny_clip(), trained, 4, lambda: None)
    assert [tuple(part.shape) for part in rows] == [(6, 768)] * 4
    whole = encode(tiny_clip(), [trained], "photo of a <sks>")[0][1][PROMPT_OPTION]
    for layer, part in enumerate(rows):
        assert torch.equal(part[:3], whole.layers[0, layer, 4:7])


def test_each_stage_stands_on_the_fused_earlier_ones(fused, wires):
    """F5: contexts come from the fused text encoder, or from the concept's own."""
    mode, (_, clip, *_), place = fused
    store = FusionStore(place / f"cross {mode}", digest_of(place / f"cross {mode}"))
    ((trained,), (plain,)) = wires
    for concept in (trained, plain):
        own = on_base(concept.lora, concept.strength)[1]
        reader = clip if mode == "paper" else own
        wanted = context_rows(reader, concept, 4, lambda: None)
        others = context_rows(own if mode == "paper" else clip, concept, 4, lambda: None)
        found = [
            store.member(path.stem)
            for path in store.folder.glob("*.safetensors")
            if store.member(path.stem).rows["0"].shape == wanted[0].shape
        ]
        (kept,) = found
        for layer, part in enumerate(wanted):
            assert relative(kept.rows[str(layer)], part) < 1e-5
            assert relative(kept.rows[str(layer)], others[layer]) > 1e-5


@pytest.mark.parametrize("mode", ["paper", "own"])
def test_a_concept_is_drawn_with_the_fused_keys_and_values(mode, wires, monkeypatch):
    """F5: attn2.to_k is the fused one while concepts are drawn, or the concept's own."""
    module = tiny(NAME).model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k
    seen = []
    inner = Stages._draw

    def draw(self, member, watch, before):
        hook = module.register_forward_hook(lambda m, a, out: seen.append((a[0], out)))
        try:
            inner(self, member, watch, before)
        finally:
            hook.remove()
        name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
        own = delta(member.factors[name]) * member.concept.strength
        wanted = delta(before[name]) if mode == "paper" else own
        x, out = seen[-1]
        weight = tiny(NAME).model.state_dict()[
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        ]
        assert relative(out, x @ weight.mT) < 1e-5  # patched in place: base and the change
        seen.append((wanted, weight.clone()))

    monkeypatch.setattr(Stages, "_draw", draw)
    queue_fusion(wires, activations=mode)
    restore_shared()
    base = tiny(NAME).model.state_dict()[
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    ]
    changes = [pair for pair in seen if pair[0].shape == base.shape]
    assert len(changes) == 2
    for wanted, weight in changes:
        assert relative(weight - base, wanted) < 1e-4


def test_the_average_anchor_and_damping_lead_to_the_average(wires):
    out = queue_fusion(wires, anchor="average", damping=100.0, steps=1)
    for layer in out.result[5].layers:
        assert layer.norm == pytest.approx(layer.average_norm, rel=0.05)


def test_less_rank_costs_what_is_said(wires):
    out = queue_fusion(wires, rank=3, steps=1)
    assert {layer.rank for layer in out.result[5].layers} == {3}
    assert all(0 < layer.cut < 1 for layer in out.result[5].layers)
    assert all(layer.objective > 0 and layer.loss > 0 for layer in out.result[5].layers)
    assert "the limit on the rank costs up to" in out.result[4]
    smaller = queue_fusion(wires, energy=0.6, steps=1).result[5].layers
    assert max(layer.rank for layer in smaller) < 7
    assert all(layer.cut <= 0.4 + 1e-6 for layer in smaller)


def test_pictures_of_a_lora_are_seen_in_place_of_drawn_ones(wires):
    shown = lora_to_fuse(plain_lora(tiny(NAME), 2), images=picture(64, 80, seed=3))
    out = queue_fusion([wires[0], shown], vae=vae_for("sd15"))
    assert [stage.passes for stage in out.result[5].stages] == [2, 2, 2]
    drawn_too = queue_fusion(wires).result[2]
    assert any(not torch.equal(out.result[2][key], drawn_too[key]) for key in drawn_too)


def test_prior_prompts_keep_the_base(wires):
    prompt = "a green house"

    def change(out):
        base = stock(tiny_clip(), prompt)[0][0][:, 1:5]
        return relative(stock(out.result[1], prompt)[0][0][:, 1:5], base)

    kept = queue_fusion(wires, prior_prompts=f"{prompt}\na dog", prior_weight=10.0, steps=1)
    assert change(kept) < 0.3 * change(queue_fusion(wires, steps=1))
    assert [stage.passes for stage in kept.result[5].stages] == [3, 3, 3]
