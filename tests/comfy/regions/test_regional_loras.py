"""A LoRA for each region: where it acts, and that it acts there as a weight patch would."""

import logging

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from concept_case import NAME, NEGATIVE, apply_concepts, encode
from concept_inputs import concept_for, stock
from gated_loras import FILES, gaussian, hook_count, layer_file, patched, relative
from half_inputs import make, trained
from pack.lora_ops import Box, Region
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.lora.apply import apply_lora
from pack.nodes.regions.nodes_apply import RegionPrompt
from pack.nodes.regions.sampling.unet import UNetBackend
from regional_case import (
    EXACT,
    LEFT,
    RIGHT,
    WHOLE,
    cond,
    ksample,
    latent_of,
    lora_of,
    region_prompts,
    regional,
)
from tiny import restore_shared, tiny, tiny_clip


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan21"])
@pytest.mark.parametrize("targets", ["attention", "all linear"])
def test_in_one_full_frame_region_it_is_the_weight_patched_model(name, targets):
    """In positive and negative rows, with and without a negative of the region's own."""
    positive, negative, own, unwanted = (cond(name, seed) for seed in range(4))
    lora = lora_of(name, targets=targets)
    for its_negative, heard in ((unwanted, unwanted), (None, negative)):
        wanted = ksample(patched(tiny(name), lora), own, heard, latent_of(name, batch=1))
        tiny(name).unpatch_model()
        model = regional(
            tiny(name),
            [WHOLE],
            region_prompts(("all", own, its_negative, {"lora": lora, "strength": 1.0})),
        )
        found = ksample(model, positive, negative, latent_of(name))
        assert relative(found, wanted) < EXACT
    # The global prompt serves a region without words, under its LoRA.
    wanted = ksample(patched(tiny(name), lora), positive, negative, latent_of(name))
    tiny(name).unpatch_model()
    model = regional(tiny(name), [WHOLE], region_prompts(("all", None, None, {"lora": lora})))
    assert relative(ksample(model, positive, negative, latent_of(name)), wanted) < EXACT
    assert hook_count(model) == 0


@pytest.mark.full
@pytest.mark.parametrize("name", ["sdxl", "sd21_v", "flux2"])
def test_in_one_full_frame_region_on_wider_networks(name):
    positive, negative, own = (cond(name, seed) for seed in range(3))
    wanted = ksample(patched(tiny(name), lora_of(name)), own, negative, latent_of(name))
    tiny(name).unpatch_model()
    model = regional(
        tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora_of(name)}))
    )
    assert relative(ksample(model, positive, negative, latent_of(name)), wanted) < EXACT


@pytest.mark.parametrize("kind", [kind for kind, (name, _) in FILES.items() if name != "sdxl"])
def test_downloaded_files_of_every_form(kind):
    """Convolutions, slices of fused layers, layers that see no tokens."""
    name, make = FILES[kind]
    own, negative, lora = cond(name, 2), cond(name, 1), make()
    wanted = ksample(patched(tiny(name), lora), own, negative, latent_of(name), steps=1)
    tiny(name).unpatch_model()
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora})))
    found = ksample(model, cond(name, 0), negative, latent_of(name), steps=1)
    assert relative(found, wanted) < EXACT


def two_loras(name="sd15"):
    return region_prompts(
        ("left", cond(name, 2), None, {"lora": lora_of(name, 1), "strength": 0.5}),
        ("right", cond(name, 3), None, {"lora": lora_of(name, 2)}),
    )


def test_each_layer_changes_by_the_regions_own_lora():
    """Of one layer's input the left half meets one LoRA, the right half the other."""
    model = regional(tiny("sd15"), [LEFT, RIGHT], two_loras())
    blocks = dict(model.model.diffusion_model.named_modules())
    layers = {name: blocks[f"input_blocks.1.1.transformer_blocks.0.{name}"] for name in LAYERS}
    seen = {name: (module, []) for name, module in layers.items()}
    handles = [
        module.register_forward_pre_hook(lambda m, args, n=name: seen[n][1].append(args[0].clone()))
        for name, module in layers.items()
    ]
    outputs = {}

    def keep(name):
        def after(module, args, output):
            outputs.setdefault(name, output.clone())

        return after

    def after_regions(apply_model, arguments):
        own = [m.register_forward_hook(keep(n)) for n, m in layers.items()]
        try:
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            for handle in own:
                handle.remove()

    model.set_model_unet_function_wrapper(after_regions)
    try:
        ksample(model, cond("sd15", 0), [], latent_of("sd15"), cfg=1.0, steps=1)
    finally:
        for handle in handles:
            handle.remove()
    for name, (module, inputs) in seen.items():
        change = outputs[name] - module(inputs[0])
        key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_" + name.replace(".", "_")
        wanted = torch.zeros_like(change)
        halves = [(wanted.unflatten(1, (8, 8))[:, :, :4], 1, 0.5)]
        halves.append((wanted.unflatten(1, (8, 8))[:, :, 4:], 2, 1.0))
        for number, (half, seed, strength) in enumerate(halves):
            lora = lora_of("sd15", seed)
            up, down = lora[f"{key}.lora_up.weight"], lora[f"{key}.lora_down.weight"]
            scale = strength * float(lora[f"{key}.alpha"]) / down.shape[0]
            x = inputs[0].unflatten(1, (8, 8))[:, :, 4 * number : 4 * number + 4]
            half += scale * x @ down.T @ up.T
        torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-5)


LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_out.0", "attn2.to_q")


@pytest.mark.parametrize("name", ["sd15", "flux", "sd3", "wan21"])
def test_isolated_keys_and_values_stay_the_bases(name):
    """With ``isolate`` a full-frame LoRA is one without self-attention's keys and values."""
    own, negative, lora = cond(name, 2), cond(name, 1), lora_of(name)
    model = regional(
        tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora})), isolate=True
    )
    found = ksample(model, cond(name, 0), negative, latent_of(name))
    open_model = regional(tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora})))
    assert relative(ksample(open_model, cond(name, 0), negative, latent_of(name)), found) > 1e-3
    if name in ("sd15", "wan21"):
        kept = {k: v for k, v in lora.items() if not any(part in k for part in ISOLATED)}
        assert len(kept) < len(lora)
    elif name == "sd3":
        kept = {
            k: torch.cat([v[:128], 0 * v[128:]]) if "x_block.attn.qkv.lora_B" in k else v
            for k, v in lora.items()
        }
    else:  # single blocks see text and image in one layer: only the double blocks can be told
        lora = {k: v for k, v in lora.items() if "double_blocks" in k}
        model = regional(
            tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora})), isolate=True
        )
        found = ksample(model, cond(name, 0), negative, latent_of(name))
        kept = {
            k: torch.cat([v[:128], 0 * v[128:]]) if "img_attn.qkv.lora_B" in k else v
            for k, v in lora.items()
        }
    wanted = ksample(patched(tiny(name), kept), own, negative, latent_of(name))
    assert relative(found, wanted) < EXACT


ISOLATED = ("attn1_to_k", "attn1_to_v", "self_attn.k", "self_attn.v")


@pytest.mark.parametrize("without_tokens", ["by area", "not at all"])
def test_layers_without_tokens(without_tokens, caplog):
    """They get the LoRA by the region's area, or not at all, and the user hears of it once."""
    lora = layer_file("diffusion_model.time_embed.0", gaussian(4, 320), gaussian(1280, 4, seed=1))
    positive, negative = cond("sd15", 0), cond("sd15", 1)
    with caplog.at_level(logging.WARNING):
        model = regional(
            tiny("sd15"),
            [LEFT],
            region_prompts(("left", positive, None, {"lora": lora})),
            without_tokens=without_tokens,
        )
        found = ksample(model, positive, negative, latent_of("sd15"))
    said_of_it = [r for r in caplog.records if "layers without tokens" in r.getMessage()]
    assert len(said_of_it) == 1
    half = {k: v * 0.5 if "lora_up" in k else v for k, v in lora.items()}
    base = tiny("sd15") if without_tokens == "not at all" else patched(tiny("sd15"), half)
    assert relative(found, ksample(base, positive, negative, latent_of("sd15"))) < EXACT


def test_layers_that_the_model_lacks_are_said_once(caplog):
    lora = {**lora_of("sd15"), "lora_unet_no_such_layer.lora_up.weight": torch.zeros(4, 4)}
    lora["lora_unet_no_such_layer.lora_down.weight"] = torch.zeros(4, 4)
    with caplog.at_level(logging.WARNING):
        model = regional(tiny("sd15"), [LEFT], region_prompts(("left", None, None, {"lora": lora})))
        for _ in range(2):
            ksample(model, cond("sd15"), cond("sd15", 1), latent_of("sd15"), steps=1)
    assert len([r for r in caplog.records if "are left out" in r.getMessage()]) == 1


def test_overlapping_loras_are_averaged_not_added():
    positive, negative, lora = cond("sd15", 0), cond("sd15", 1), lora_of("sd15")
    twice = [WHOLE, Region("again", Box(0, 0, 1, 1))]
    prompts = region_prompts(
        ("all", positive, negative, {"lora": lora}), ("again", positive, negative, {"lora": lora})
    )
    wanted = ksample(patched(tiny("sd15"), lora), positive, negative, latent_of("sd15"))
    tiny("sd15").unpatch_model()
    model = regional(tiny("sd15"), twice, prompts)
    found = ksample(model, positive, negative, latent_of("sd15"))
    assert relative(found, wanted) < EXACT


def test_six_regions_with_six_loras_on_a_wide_canvas():
    rows = [Region(f"{i}", Box(i / 6, 0, (i + 1) / 6, 1)) for i in range(6)]
    prompts = region_prompts(
        *((f"{i}", cond("sd15", i + 2), None, {"lora": lora_of("sd15", i)}) for i in range(6))
    )
    model = regional(tiny("sd15"), rows, prompts)
    found = ksample(model, cond("sd15", 0), cond("sd15", 1), latent_of("sd15", 8, 16), steps=1)
    assert bool(found.isfinite().all())
    assert hook_count(model) == 0


def text_lora():
    """A LoRA of the text encoder beside the denoiser's."""
    base = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    return lora_of("sd15") | layer_file(base, gaussian(4, 768), gaussian(768, 4, seed=1))


def test_text_is_encoded_under_the_loras_own_text_encoder_part():
    lora, clip = text_lora(), tiny_clip()
    found = RegionPrompt.execute("cat", "a cat", "a dog", "in ink,", 0.8, clip=clip, lora=lora)[
        0
    ].prompts[0]
    _, under = apply_lora(tiny("sd15"), clip, lora, 0.0, 0.8)
    assert torch.equal(found.positive[0][0], encode_prompt(under, "in ink, a cat")[0][0])
    assert torch.equal(found.negative[0][0], encode_prompt(under, "a dog")[0][0])
    assert not torch.equal(found.positive[0][0], encode_prompt(clip, "in ink, a cat")[0][0])


def test_common_words_are_taken_over_and_an_empty_text_stays_empty():
    clip = tiny_clip()
    first = RegionPrompt.execute("a", "a cat", "", "in ink,", 1.0, clip=clip)[0]
    second = RegionPrompt.execute("b", "a dog", "", "", 1.0, first, clip=clip)[0]
    third = RegionPrompt.execute("c", "", "", "", 1.0, second, clip=clip)[0]
    assert torch.equal(second.prompts[1].positive[0][0], encode_prompt(clip, "in ink, a dog")[0][0])
    assert third.prompts[2].positive is None
    assert [prompt.region for prompt in third.prompts] == ["a", "b", "c"]
    assert len(first.prompts) == 1  # an input is never changed


def test_a_concept_in_a_region_needs_no_apply_concept():
    """Its layer-wise words and its LoRA act as where it is on the whole model."""
    concept = concept_for(tiny(NAME), "sks")
    model, clip = apply_concepts(tiny(NAME), [concept], 0.7, 0.7)
    negative = stock(tiny_clip(), NEGATIVE)
    wanted = ksample(model, encode(clip, [concept]), negative, latent_of(NAME))
    tiny(NAME).unpatch_model()
    prompts = RegionPrompt.execute(
        "all",
        "a photo of <sks> on a beach",
        "",
        "",
        0.7,
        clip=tiny_clip(),
        concepts={"concept0": (concept,)},
    )[0]
    model = regional(tiny(NAME), [WHOLE], prompts)
    found = ksample(model, stock(tiny_clip(), "two things"), negative, latent_of(NAME))
    assert relative(found, wanted) < EXACT


def test_no_copy_of_a_lora_is_made_before_a_layer_meets_it(monkeypatch):
    """Checking the fit costs no memory; a layer's factors are put together once, where it runs."""
    lora = lora_of("sd15", targets="all linear")
    prompts = region_prompts(
        ("left", None, None, {"lora": lora}), ("right", None, None, {"lora": lora})
    )
    concatenated, concatenate = [], torch.cat
    kinds = {tuple(value.shape) for key, value in lora.items() if "lora_down" in key}

    def watched(tensors, *args, **kwargs):
        concatenated.extend(t for t in tensors if tuple(t.shape) in kinds and t.shape[0] == 4)
        return concatenate(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", watched)
    model = regional(tiny("sd15"), [LEFT, RIGHT], prompts)
    assert not concatenated
    ksample(model, cond("sd15"), cond("sd15", 1), latent_of("sd15"))
    assert len(concatenated) == 2 * sum("lora_down" in key for key in lora)


def test_the_keys_of_a_text_are_kept_once(monkeypatch):
    """For a picture of a batch, and for rows that hear it, there is no copy of them."""
    kept = []
    prepare = UNetBackend.prepare

    def watched(self, *args):
        kept.append(self)
        return prepare(self, *args)

    monkeypatch.setattr(UNetBackend, "prepare", watched)
    prompts = region_prompts(("left", cond("sd15", 2), cond("sd15", 3)))
    model = regional(tiny("sd15"), [LEFT], prompts)
    ksample(model, cond("sd15"), cond("sd15", 1), latent_of("sd15", batch=4))
    layers = len(kept[-1]._modules)
    assert sum(len(pair) for pair in kept[-1]._kept.values()) == layers * 2 * 2
    assert all(value.shape == (12, 320) for pair in kept[-1]._kept.values() for value in pair)


def test_two_concepts_in_two_regions():
    """Behind the first transformer each half is as with its concept everywhere.

    With ``isolate`` no half sees another's LoRA in keys and values of the picture.
    """
    clip, base = tiny_clip(), stock(tiny_clip(), "two things on a beach")
    concepts = {key: concept_for(tiny(NAME), key, seed=100 * i) for i, key in enumerate("ab", 1)}

    def block_output(*regions):
        prompts = None
        for region, key in regions:
            text, wire = f"a photo of <{key}> on a beach", {"concept0": (concepts[key],)}
            prompts = RegionPrompt.execute(
                region.name, text, "", "", 0.7, prompts, clip=clip, concepts=wire
            )[0]
        model = regional(tiny(NAME), [region for region, _ in regions], prompts, isolate=True)
        network, seen = model.model.diffusion_model, []
        block = next(m for m in network.modules() if isinstance(m, BasicTransformerBlock))
        handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            ksample(model, base, [], latent_of(NAME), cfg=1.0, steps=1)
        finally:
            handle.remove()
        return seen[0].unflatten(1, (8, 8))

    found = block_output((LEFT, "a"), (RIGHT, "b"))
    first, second = block_output((WHOLE, "a")), block_output((WHOLE, "b"))
    assert relative(found[:, :, :4], first[:, :, :4]) < EXACT
    assert relative(found[:, :, 4:], second[:, :, 4:]) < EXACT
    assert relative(first, second) > 1e-2


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_lora_of_break_for_make_in_a_region(name):
    lora = make([trained("content", name)], [trained("style", name)]).result[0][0]
    restore_shared()
    own, negative = cond(name, 2), cond(name, 1)
    strong = {k: v * 5 if "lora_up" in k or "lora_B" in k else v for k, v in lora.items()}
    wanted = ksample(patched(tiny(name), strong), own, negative, latent_of(name))
    restore_shared()
    model = regional(
        tiny(name), [WHOLE], region_prompts(("all", own, None, {"lora": lora, "strength": 5.0}))
    )
    found = ksample(model, cond(name, 0), negative, latent_of(name))
    assert relative(found, wanted) < EXACT
    assert relative(ksample(tiny(name), own, negative, latent_of(name)), wanted) > 10 * EXACT
