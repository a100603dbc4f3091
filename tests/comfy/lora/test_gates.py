"""Gated hooks equal weight patching and core's hook LoRA, on tiny real models and real files."""

import comfy.hooks
import comfy.lora
import comfy.samplers
import pytest
import torch
from gated_loras import (
    FILES,
    UNETS,
    gaussian,
    hook_count,
    inputs,
    layer_file,
    patched,
    prediction,
    random_lora,
    relative,
)
from pack.lora_ops import LowRank
from pack.nodes.lora.layers import lora_layers
from pack.nodes.text.training_cond import training_cond
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.gates import Gate, GatedAdapters
from pack.training.settings import TARGETS
from tiny import TINY_NAMES, tiny, tiny_cond, tiny_latent, weights_hash

# Modules per model: attention projections, as counted by hand from its blocks.
ATTENTION_LAYERS = {
    "sd15": 8,
    "sd21_v": 8,
    "sdxl": 48,
    "sdxl_v": 48,
    "sd3": 7,  # two joint blocks, two streams, qkv and proj; the last text stream has no proj
    "flux": 8,  # qkv and proj of two streams; linear1's qkv and linear2 of two single blocks
    "flux2": 8,
    "wan21": 16,
}


@pytest.mark.parametrize("name", TINY_NAMES)
def test_sites_are_the_attention_projections(name):
    sites = training_sites(tiny(name), "attention")
    assert len(sites) == ATTENTION_LAYERS[name]
    assert len({(site.module, site.start) for site in sites.values()}) == len(sites)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_file_keys_are_read_by_core_without_a_leftover(name, caplog):
    """Every target choice: each key lands on the module and the slice that was trained."""
    model = tiny(name)
    counts = []
    for targets in TARGETS:
        sites = training_sites(model, targets)
        lora = random_lora(model, targets)
        assert not any(
            key.startswith("lora_unet_" if name not in UNETS else "diffusion_model.")
            for key in lora
        )
        layers = lora_layers(model, lora)
        assert layers.unmatched == []
        found, _ = layers.on(model)
        wanted = {(site.module, site.shape, site.start) for site in sites.values()}
        assert {(site.module, site.shape, site.start) for site in found.values()} == wanted
        patched(model, lora)
        counts.append(len(sites))
    assert counts[0] < counts[1] <= counts[2]
    assert "lora key not loaded" not in caplog.text


def test_kohya_names_are_the_diffusers_ones():
    keys = list(random_lora(tiny("sdxl")))
    first = "lora_unet_down_blocks_0_attentions_2_transformer_blocks_0_attn1_to_q.lora_down.weight"
    assert first in keys


@pytest.mark.parametrize("name", TINY_NAMES)
def test_gated_equals_weight_patched(name):
    model = tiny(name)
    before = weights_hash(model)
    lora = random_lora(model)
    expected = prediction(patched(model, lora))
    base = prediction(model)
    sites, adapter = lora_layers(model, lora).on(model)
    gates = GatedAdapters(sites, {"lora": adapter})
    found = prediction(model, 1, gates, [{"lora": Gate()}])
    assert relative(found, expected) < 1e-5
    assert relative(found, base) > 1e-3
    off = prediction(model, 1, gates, [{}])
    assert torch.equal(off, base)
    assert hook_count(model) == 0
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", TINY_NAMES)
def test_rows_are_gated_apart_in_one_forward(name):
    """Off, one, the other, both at strength 0.5: each row equals its own patched model."""
    model = tiny(name)
    one, two = random_lora(model, seed=0), random_lora(model, seed=100)
    sites, first = lora_layers(model, one).on(model)
    _, second = lora_layers(model, two).on(model)
    gates = GatedAdapters(sites, {"one": first, "two": second})
    half = Gate(0.5)
    rows = [{}, {"one": Gate()}, {"two": Gate()}, {"one": half, "two": half}]
    found = prediction(model, 4, gates, rows)
    both = model.clone()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    for lora in (one, two):
        both.add_patches(comfy.lora.load_lora(dict(lora), names), 0.5)
    clones = [model, patched(model, one), patched(model, two), both]
    for row, clone in enumerate(clones):
        alone = prediction(clone, 4, only=slice(row, row + 1))
        assert relative(found[row : row + 1], alone) < 1e-5


@pytest.mark.parametrize("name", TINY_NAMES)
def test_gated_equals_native_hook_lora(name):
    """Core's hook LoRA on the positive cond, through the guider, against the gated forward."""
    model = tiny(name)
    before = weights_hash(model)
    lora = random_lora(model)
    latent = tiny_latent(model, 8, 8)["samples"]
    cond = [[tiny_cond(model, 12)[0][0], {**tiny_cond(model, 12)[0][1], "guidance": 1.0}]]
    hooks = comfy.hooks.create_hook_lora(dict(lora), 1.0, 0.0)
    seen = {}

    def one_step(guider, x, sigmas, extra_args, callback, disable):
        seen["x"], seen["sigma"] = x.clone(), sigmas[:1]
        seen["denoised"] = guider(x, sigmas[:1], **extra_args)
        return seen["denoised"]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(comfy.hooks.set_hooks_for_conditioning(cond, hooks), cond)
    guider.set_cfg(1.0)
    table = model.model.model_sampling.sigmas
    sigmas = torch.tensor([float(table[len(table) * 6 // 10]), 0.0])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    guider.sample(noise, latent, comfy.samplers.KSAMPLER(one_step), sigmas)

    sites, adapter = lora_layers(model, lora).on(model)
    gates = GatedAdapters(sites, {"lora": adapter})
    caption = training_cond(model, cond, latent[0])
    with open_denoiser(model) as denoiser, torch.no_grad():
        base = denoiser.denoise(seen["x"], seen["sigma"], [caption])
        with gates.attached(), gates.gated([{"lora": Gate()}]):
            found = denoiser.denoise(seen["x"], seen["sigma"], [caption])
    assert relative(found, seen["denoised"]) < 1e-5
    assert relative(found, base) > 1e-3
    assert weights_hash(model) == before


@pytest.mark.parametrize("kind", FILES)
def test_file_layers_equal_weight_patching(kind):
    name, make = FILES[kind]
    model, lora = tiny(name), make()
    sites, adapter = lora_layers(model, lora).on(model)
    gates = GatedAdapters(sites, {"lora": adapter})
    found = prediction(model, 1, gates, [{"lora": Gate()}])
    expected = prediction(patched(model, lora))
    assert relative(found, expected) < 1e-5
    assert relative(found, prediction(model)) > 1e-4


def refused(name, lora):
    with pytest.raises(ValueError, match=r"choose a LoRA made for it|must ") as caught:
        lora_layers(tiny(name), lora)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "kind"), [("diff", "diff"), ("diff_b", "diff"), ("set_weight", "set")]
)
def test_full_changes_are_refused_by_name(key, kind):
    message = refused("sd15", {f"diffusion_model.out.2.{key}": torch.zeros(4)})
    assert f"kind {kind}" in message
    assert "Apply LoRA" in message


def test_loha_lokr_and_dora_are_refused_by_name():
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    loha = {f"{base}.hada_{part}": gaussian(320, 4) for part in ("w1_a", "w2_a")}
    loha |= {f"{base}.hada_{part}": gaussian(4, 320) for part in ("w1_b", "w2_b")}
    lokr = {f"{base}.lokr_w1": gaussian(4, 4), f"{base}.lokr_w2": gaussian(80, 80)}
    dora = layer_file(base, gaussian(4, 320), gaussian(320, 4), dora_scale=gaussian(320, 1))
    for kind, lora in {"loha": loha, "lokr": lokr, "DoRA": dora}.items():
        assert f"kind {kind}" in refused("sd15", lora)


def test_lora_of_another_architecture_is_refused():
    assert "without any matching key" in refused("flux", random_lora(tiny("sd15")))
    assert "without any matching key" in refused("sd15", random_lora(tiny("wan21")))
    # Some names are common to SD1.5 and SDXL; then the widths tell.
    wide = {key: value for key, value in random_lora(tiny("sd21_v")).items() if "attn2_to_k" in key}
    assert "choose a LoRA made for it" in refused("sd15", wide)


def test_text_encoder_only_lora_has_no_key_for_the_model():
    base = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    message = refused("sd15", layer_file(base, gaussian(4, 768), gaussian(768, 4)))
    assert "no key for the image model" in message


def test_unmatched_keys_are_listed():
    model = tiny("sd15")
    lora = random_lora(model) | layer_file("lora_unet_nowhere", gaussian(4, 4), gaussian(4, 4))
    assert lora_layers(model, lora).unmatched == ["lora_unet_nowhere"]


def test_frozen_gate_lets_gradient_through_but_not_in():
    """Frozen parts get no gradient; what lies before them gets the same as without freezing."""
    model = tiny("sd15")
    sites, adapter = lora_layers(model, random_lora(model)).on(model)
    for layer in adapter.layers.values():
        layer.up.requires_grad_()
    latent, conds = inputs(model)
    gradients = []

    class Detaching:
        def factors(self, site, frozen, like):
            layer = adapter.layers.get(site)
            if layer is None or "up" not in frozen:
                return layer
            return LowRank(layer.down, layer.up.detach(), layer.alpha)

    gates = GatedAdapters(sites, {"lora": Detaching()})
    with open_denoiser(model) as denoiser, gates.attached():
        for gate in (Gate(), Gate(frozen=frozenset({"up"}))):
            x = latent.clone().requires_grad_()
            with gates.gated([{"lora": gate}]):
                out = denoiser.denoise(x, denoiser.sigma_at(torch.tensor([0.5])), conds)
            for layer in adapter.layers.values():
                layer.up.grad = None
            out.square().sum().backward()
            gradients.append(x.grad)
            reached = [layer.up.grad is not None for layer in adapter.layers.values()]
            assert all(reached) is not bool(gate.frozen)
            assert any(reached) is not bool(gate.frozen)
    assert torch.equal(*gradients)
    assert hook_count(model) == 0


def test_regrouped_batch_is_refused():
    model = tiny("sd15")
    sites, adapter = lora_layers(model, random_lora(model)).on(model)
    gates = GatedAdapters(sites, {"lora": adapter})
    with pytest.raises(RuntimeError, match="must be a multiple of the call's rows"):
        prediction(model, 3, gates, [{"lora": Gate()}, {}])
    assert hook_count(model) == 0
