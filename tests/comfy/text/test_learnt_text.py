"""A text encoder that gradients flow through: against float64, and against sampling's encoding."""

import clip_text
import comfy.lora
import pytest
import torch
from concept_encoders import ENCODERS, clip_of
from pack.lora_ops import Plain
from pack.nodes.concepts.apply import apply_concepts
from pack.nodes.concepts.examples import CaptionEncoder
from pack.nodes.text.concept_prompt import PROMPT, encode_concept_prompt
from pack.nodes.text.encoder_layers import text_layers
from pack.nodes.text.layer_contexts import LAYERS, context_layers
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.denoiser import open_denoiser
from pack.training.adapters import new_adapter
from pack.training.files.concept import TEXT_WIDTHS, Concept
from pack.training.files.lora_state import lora_state
from pack.training.gates import Gate, GatedAdapters
from tiny import CLIP_LAYERS, tiny, tiny_clip, tiny_latent, weights_hash
from training_concepts import clip_for

FAMILIES = {"sd15_layers": ("clip_l",), "sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l",)}
WIDTHS = {"clip_l": 768, "clip_g": 1280}
PROMPTS = {
    "plain": "a photo of <sks> on a beach",
    "weighted": "a (photo of <sks>:1.3) in the (snow:0.7)",
    "without it": "a photo of a beach",
    "over 77 tokens": f"{'a house and a tree, ' * 14} <sks> {'on the green hill ' * 6}",
}


def rows_for(name: str, model, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, context_layers(model))
    return {
        encoder: torch.randn(*shape, WIDTHS[encoder], generator=generator) * 0.03
        for encoder in FAMILIES[name]
    }


def text_adapter(clip, rank: int = 2):
    """An adapter on the text encoder's layers with random factors, and its sites."""
    layers = text_layers(clip, 0.1)
    sites = {name: layer.on(clip.cond_stage_model) for name, layer in layers.items()}
    adapter = new_adapter("concept", Plain(), sites, rank, 3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for parts in adapter.parts.values():
        parts["up"].data.copy_(torch.randn(parts["up"].shape, generator=generator) * 0.05)
    return adapter, sites


def live(denoiser, reader, texts, rows):
    """The conditions of one forward, as training encodes them."""
    latent = tiny_latent(denoiser.patcher, 8, 8)["samples"][0]
    conds = [reader.cond(text, latent)(rows) for text in texts]
    return denoiser.encoded(conds)


def sampled(clip, concept, prompt):
    """What sampling encodes: the contexts of the layers, or the one for all, and the options."""
    with torch.inference_mode():
        ((context, options),) = encode_concept_prompt(clip, [concept], prompt)
    layers = options[PROMPT].layers
    return (context if layers is None else layers), options


def trained_context(conds):
    found = conds.model_conds
    return (found[LAYERS] if LAYERS in found else found["c_crossattn"]).cond


def nearly(ours, wanted, share=1e-6) -> bool:
    return bool((ours - wanted).abs().max() <= share * wanted.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_training_and_sampling_encode_alike(name):
    model, clip = tiny(name), clip_for(name)
    rows = rows_for(name, model)
    reader = CaptionEncoder(Base(model, clip, None), "sks", context_layers(model))
    prompts = list(PROMPTS.values())
    with open_denoiser(model, clip=clip) as denoiser, torch.no_grad():
        # Two rows at once, as a batch has them; weights are applied to each of its own.
        found = [live(denoiser, reader, [prompt, prompt], rows)[1] for prompt in prompts]
    for prompt, cond in zip(prompts, found, strict=True):
        wanted, options = sampled(clip, Concept("sks", "dog", rows), prompt)
        assert trained_context(cond).shape == wanted.shape
        assert nearly(trained_context(cond), wanted), prompt
        if name == "sdxl":  # the first part of the vector; the rest are sizes
            assert nearly(cond.model_conds["y"].cond[:, :1280], options["pooled_output"])


def test_a_lora_on_the_text_encoder_means_the_same_to_both():
    """But for ComfyUI's rounding: it adds LoRAs to weights in half precision."""
    model, clip = tiny("sd15_layers"), tiny_clip()
    rows, prompt = rows_for("sd15_layers", model), PROMPTS["plain"]
    reader = CaptionEncoder(Base(model, clip, None), "sks", context_layers(model))
    with open_denoiser(model, clip=clip) as denoiser, torch.no_grad():
        adapter, sites = text_adapter(denoiser.text.clip)
        gates = GatedAdapters(sites, {"concept": adapter})
        with gates.attached(), gates.gated([{"concept": Gate()}]):
            ours = trained_context(live(denoiser, reader, [prompt], rows)[0])
        bare = trained_context(live(denoiser, reader, [prompt], rows)[0])
        factors = adapter.result()
    concept = Concept("sks", "dog", rows, lora_state(factors, {}))
    with torch.inference_mode():
        _, patched = apply_concepts(model, clip, [concept], 1.0, 1.0)
    wanted, _ = sampled(patched, concept, prompt)
    assert nearly(ours, wanted, 2e-3)
    assert not nearly(bare, wanted, 2e-2)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_float64(recompute):
    """Of both words in every layer and of the LoRA's factors, against CLIP written out."""
    model, clip = tiny("sd15_layers"), tiny_clip()
    start = rows_for("sd15_layers", model)["clip_l"]
    reader = CaptionEncoder(Base(model, clip, None), "sks", context_layers(model))
    prompt = PROMPTS["plain"]
    weigh = torch.randn(1, 4, 77, 768, generator=torch.Generator().manual_seed(8))
    with open_denoiser(model, checkpointing=recompute, clip=clip) as denoiser:
        adapter, sites = text_adapter(denoiser.text.clip)
        gates, rows = GatedAdapters(sites, {"concept": adapter}), start.clone().requires_grad_()
        with gates.attached(), gates.gated([{"concept": Gate()}]):
            found = live(denoiser, reader, [prompt], {"clip_l": rows})[0].model_conds[LAYERS].cond
            (found * weigh).sum().backward()
        ours = {"rows": rows.grad, **{n: parts["up"].grad for n, parts in adapter.parts.items()}}
        factors, table = adapter.result(), clip.cond_stage_model.clip_l.transformer.state_dict()
    exact = _by_float64(clip, prompt, start, factors, table, weigh.double())
    for name, gradient in ours.items():
        apart = (gradient.double() - exact[name]).norm() / exact[name].norm()
        assert apart < 2e-5, name


def _by_float64(clip, prompt, start, factors, table, weigh) -> dict[str, torch.Tensor]:
    prefix = "text_model."
    state = {
        key.removeprefix(prefix): value.double()
        for key, value in table.items()
        if key.startswith(prefix)
    }
    before, after = prompt.split("<sks>")
    ids = [[token for token, _ in clip.tokenize(part)["l"][0]][1:] for part in (before, after)]
    heads = [part[: part.index(49407)] for part in ids]
    words = state["embeddings.token_embedding.weight"]
    rows = start.double().requires_grad_()
    ups = {name: factor.up.double().requires_grad_() for name, factor in factors.items()}
    loras = {
        name.removeprefix("lora_te_text_model_")
        .replace("encoder_layers_", "encoder.layers.")
        .replace("_self_attn_", ".self_attn."): (factors[name].down.double(), up)
        for name, up in ups.items()
    }
    total = 0.0
    for layer in range(start.shape[1]):
        filled = torch.cat([words[[49406, *heads[0]]], rows[:, layer], words[[*heads[1], 49407]]])
        padded = torch.cat([filled, words[[49407] * (77 - len(filled))]])
        total = total + (clip_text.encode(state, padded, loras) * weigh[0, layer]).sum()
    total.backward()
    return {"rows": rows.grad, **{name: up.grad for name, up in ups.items()}}


@pytest.mark.parametrize(("name", "base"), [("sd3", "sd3"), ("flux", "flux"), ("wan", "wan21")])
def test_gradients_reach_the_rows_of_every_encoder_t5_too(name, base):
    """As sampling encodes them, and against the difference that a small step makes."""
    model, clip = tiny(base), clip_of(name)
    generator = torch.Generator().manual_seed(6)
    start = {
        encoder: 0.03 * torch.randn(2, 1, TEXT_WIDTHS[encoder], generator=generator)
        for encoder in ENCODERS[name]
    }
    ways = {
        key: 0.001 * torch.randn(rows.shape, generator=generator) for key, rows in start.items()
    }
    reader, prompt = (
        CaptionEncoder(Base(model, clip, None), "sks", 1),
        "a photo of <sks> on a beach",
    )
    with open_denoiser(model, clip=clip) as denoiser:

        def summed(rows):
            conds = live(denoiser, reader, [prompt], rows)[0]
            found = [
                conds.model_conds[key].cond
                for key in ("c_crossattn", "y")
                if key in conds.model_conds
            ]
            weigh = torch.Generator().manual_seed(7)
            total = sum((one * torch.randn(one.shape, generator=weigh)).sum() for one in found)
            return conds, total

        rows = {key: value.clone().requires_grad_() for key, value in start.items()}
        conds, total = summed(rows)
        total.backward()
        for encoder, way in ways.items():
            with torch.no_grad():
                ahead, behind = (
                    summed({**start, encoder: start[encoder] + sign * way})[1] for sign in (1, -1)
                )
            along = (rows[encoder].grad * way).sum()
            assert along != 0
            assert float(ahead - behind) / 2 == pytest.approx(float(along), rel=0.05), encoder
    wanted, _ = sampled(clip, Concept("sks", "dog", start), prompt)
    assert nearly(conds.model_conds["c_crossattn"].cond.detach(), wanted)


def test_gates_hold_in_the_text_encoder_row_by_row():
    model, clip = tiny("sd15_layers"), tiny_clip()
    rows = rows_for("sd15_layers", model)
    reader = CaptionEncoder(Base(model, clip, None), "sks", context_layers(model))
    with open_denoiser(model, clip=clip) as denoiser, torch.no_grad():
        adapter, sites = text_adapter(denoiser.text.clip)
        gates = GatedAdapters(sites, {"concept": adapter})
        texts = [PROMPTS["plain"]] * 2
        with gates.attached(), gates.gated([{"concept": Gate()}, {}]):
            on, off = live(denoiser, reader, texts, rows)
        (plain,) = live(denoiser, reader, texts[:1], rows)
    off, on, plain = (one.model_conds[LAYERS].cond for one in (off, on, plain))
    assert torch.allclose(off, plain, atol=1e-6)
    assert not torch.allclose(on, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["sd15_layers", "sdxl"])
def test_the_clip_is_as_before(name):
    model, clip = tiny(name), clip_for(name)
    before, options = weights_hash(clip.patcher), dict(clip.tokenizer_options)
    learnt = [one.requires_grad for one in clip.cond_stage_model.parameters()]
    forwards = [module.__dict__.get("forward") for module in clip.cond_stage_model.modules()]
    reader = CaptionEncoder(Base(model, clip, None), "sks", context_layers(model))
    with open_denoiser(model, clip=clip) as denoiser, torch.no_grad():
        live(denoiser, reader, [PROMPTS["plain"]], rows_for(name, model))
    assert weights_hash(clip.patcher) == before
    assert clip.tokenizer_options == options
    after = [module.__dict__.get("forward") for module in clip.cond_stage_model.modules()]
    assert after == forwards
    for encoder in clip.cond_stage_model.children():
        assert "encode" not in encoder.__dict__
    assert [one.requires_grad for one in clip.cond_stage_model.parameters()] == learnt


def test_a_text_encoder_that_cannot_be_trained_is_named():
    class Empty:
        cond_stage_model = torch.nn.Module()

    with pytest.raises(ValueError, match="must be clip_l or clip_g, got Module"):
        text_layers(Empty(), 1.0)


def test_file_names_are_kohya_s_and_load_through_core():
    for name, prefixes in (("sd15", {"lora_te"}), ("sdxl", {"lora_te1", "lora_te2"})):
        clip = clip_for(name)
        sites = text_layers(clip, 1.0)
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        assert {site.partition("_text_model")[0] for site in sites} == prefixes
        assert all(site in known for site in sites)
        assert len(sites) % 4 == 0  # q, k, v and the output of every layer
        assert len(sites) >= 4 * CLIP_LAYERS * len(prefixes)
