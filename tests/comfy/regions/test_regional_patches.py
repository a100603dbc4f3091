"""Regions beside what else a graph carries: areas, masks, hooks, other patches, styles, windows."""

import comfy.hooks
import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider
from gated_loras import hook_count, patched, relative
from guidance_case import sample_with, styled
from regional_case import (
    CFG,
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
from tiny import tiny, weights_hash

import nodes


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """After every test the shared networks are as they were."""
    yield
    for name in ("sd15", "sd3", "flux", "wan21"):
        assert hook_count(tiny(name)) == 0


def area(conditioning, width, height, x, y):
    """Return a prompt for a part of the picture, in latent pixels."""
    return nodes.ConditioningSetArea().append(
        conditioning, width * 8, height * 8, x * 8, y * 8, 1.0
    )[0]


def test_area_conds_see_their_part_of_the_regions():
    positive, negative, left, right = (cond("sd15", seed) for seed in range(4))
    prompts = region_prompts(("left", left, None), ("right", right, None))
    model = regional(tiny("sd15"), [LEFT, RIGHT], prompts)
    latent = latent_of("sd15", 8, 16)
    parts = [*area(positive, 8, 8, 0, 0), *area(positive, 8, 8, 8, 0)]
    found = ksample(model, parts, negative, latent)
    wanted_parts = [*area(left, 8, 8, 0, 0), *area(right, 8, 8, 8, 0)]
    wanted = ksample(tiny("sd15"), wanted_parts, negative, latent)
    assert relative(found, wanted) < EXACT
    assert relative(found, ksample(tiny("sd15"), parts, negative, latent)) > 1e-3


def test_masked_conds_and_inpainting():
    positive, negative, own = (cond("sd15", seed) for seed in range(3))
    model = regional(tiny("sd15"), [WHOLE], region_prompts(("all", own, None)))
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1.0

    def masked(text):
        both = nodes.ConditioningSetMask().append(text, half, "default", 1.0)[0]
        return [*both, *nodes.ConditioningSetMask().append(negative, 1 - half, "default", 1.0)[0]]

    noise = torch.randn(latent_of("sd15").shape, generator=torch.Generator().manual_seed(3))
    for options in ({}, {"noise_mask": half}):
        # The other masked part says "own" as well: regions hold in all of the positive's parts.
        wanted = ksample(tiny("sd15"), own, negative, noise, **options)
        found = ksample(model, masked(positive), negative, noise, **options)
        assert relative(found, wanted) < EXACT


def image_tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 768, generator=generator)


def appending(model):
    """Return a model with an IP-Adapter as some packs write it: more tokens behind the text."""

    def patch(n, context, value, extra):
        tokens = image_tokens().expand(context.shape[0], -1, -1)
        return n, torch.cat([context, tokens], 1), torch.cat([value, 2 * tokens], 1)

    clone = model.clone()
    clone.set_model_attn2_patch(patch)
    return clone


def replacing(model):
    """Return a model with an IP-Adapter as others write it: a replacement that adds attention."""
    weights = torch.randn(2, 320, 768, generator=torch.Generator().manual_seed(7)) / 768**0.5

    def patch(q, k, v, extra):
        text = optimized_attention(q, k, v, extra["n_heads"])
        tokens = image_tokens().expand(q.shape[0], -1, -1)
        keys, values = tokens @ weights[0].T, tokens @ weights[1].T
        return text + 0.7 * optimized_attention(q, keys, values, extra["n_heads"])

    clone = model.clone()
    clone.set_model_attn2_replace(patch, "input", 1)
    return clone


def scaling(model):
    """Return a model with a patch that knows a prompt and a negative by their lists."""

    def patch(n, context, value, extra):
        factors = [(1.0, 0.6)[i] for i in extra["cond_or_uncond"]]
        per_row = torch.tensor(factors).repeat_interleave(len(value) // len(factors))
        return n, context, value * per_row[:, None, None]

    clone = model.clone()
    clone.set_model_attn2_patch(patch)
    return clone


def overriding(model):
    """Return a model whose attention another pack has replaced."""
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *args, **kwargs: 1.1 * function(*args, **kwargs)
    )
    return clone


@pytest.mark.parametrize("patch", [appending, replacing, scaling, overriding])
@pytest.mark.parametrize("ours_first", [False, True])
def test_other_patches_of_the_attention_go_on_working(patch, ours_first):
    positive, negative, own = (cond("sd15", seed) for seed in range(3))
    wanted = ksample(patch(tiny("sd15")), own, negative, latent_of("sd15"))
    prompts = region_prompts(("left", own, None), ("right", own, None))

    def ours(model):
        return regional(model, [LEFT, RIGHT], prompts)

    model = patch(ours(tiny("sd15"))) if ours_first else ours(patch(tiny("sd15")))
    found = ksample(model, positive, negative, latent_of("sd15"))
    assert relative(found, wanted) < EXACT
    assert relative(wanted, ksample(tiny("sd15"), own, negative, latent_of("sd15"))) > 1e-3


def test_rows_that_run_apart_give_the_same(monkeypatch):
    """Where memory is short ComfyUI splits the rows; the regions follow."""
    positive, negative, own = (cond("sd15", seed) for seed in range(3))
    model = regional(tiny("sd15"), [LEFT], region_prompts(("left", own, negative)))
    together = ksample(model, positive, negative, latent_of("sd15", batch=2))
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: 1e30)
    apart = ksample(model, positive, negative, latent_of("sd15", batch=2))
    assert relative(apart, together) < EXACT


def test_hook_loras_on_the_prompt_are_read_anew_in_every_call():
    positive, negative, own = (cond("sd15", seed) for seed in range(3))
    hooks = comfy.hooks.create_hook_lora(dict(lora_of("sd15")), 1.0, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    model = regional(tiny("sd15"), [WHOLE], region_prompts(("all", own, None)))
    found = ksample(model, hooked, negative, latent_of("sd15"))
    wanted = ksample(
        tiny("sd15"),
        comfy.hooks.set_hooks_for_conditioning(own, hooks),
        negative,
        latent_of("sd15"),
    )
    assert relative(found, wanted) < EXACT


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_other_guiders(name):
    positive, own = cond(name, 0), cond(name, 1)
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, None)))
    found = sample_with(BasicGuider.execute(model, positive)[0], model, latent_of(name))
    wanted = sample_with(BasicGuider.execute(tiny(name), own)[0], tiny(name), latent_of(name))
    assert relative(found, wanted) < EXACT


@pytest.mark.parametrize("name", ["sd15", "flux"])
@pytest.mark.parametrize("ours_first", [False, True])
def test_style_guidance(name, ours_first):
    """Everywhere a style's rows hear the regions; masked to a region they keep their prompt."""
    positive, negative, style, own = (cond(name, seed) for seed in range(4))
    prompts = region_prompts(("all", own, None))
    for mask, heard in ((None, own), (torch.ones(1, 64, 64), style)):

        def both(mask=mask):
            if ours_first:
                model = regional(tiny(name), [WHOLE], prompts, pooled="global prompt's")
                return styled(model, lora_of(name), style, start=0.0, mask=mask)
            model = styled(tiny(name), lora_of(name), style, start=0.0, mask=mask)
            return regional(model, [WHOLE], prompts, pooled="global prompt's")

        def with_pooled_of(text, source):
            options = dict(text[0][1])
            if "pooled_output" in options:
                options["pooled_output"] = source[0][1]["pooled_output"]
            return [[text[0][0], options]]

        found = ksample(both(), positive, negative, latent_of(name))
        model = styled(
            tiny(name), lora_of(name), with_pooled_of(heard, style), start=0.0, mask=mask
        )
        wanted = ksample(model, with_pooled_of(own, positive), negative, latent_of(name))
        assert relative(found, wanted) < EXACT


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_style_in_one_region_leaves_the_others_bit_for_bit(name):
    """Its term is multiplied by the mask: after one step it is whole inside and nothing outside."""
    positive, negative, style, own, other = (cond(name, seed) for seed in range(5))
    prompts = region_prompts(("left", own, None), ("right", other, None))
    latent = latent_of(name, 8, 16)
    left = torch.zeros(1, 64, 128)
    left[..., :64] = 1.0

    def found(mask=None):
        model = regional(tiny(name), [LEFT, RIGHT], prompts)
        if mask is not None:
            model = styled(model, lora_of(name), style, start=0.0, mask=mask)
        return ksample(model, positive, negative, latent, steps=1)

    plain, everywhere, inside = found(), found(torch.ones(1, 64, 128)), found(left)
    assert torch.equal(inside[..., :8], everywhere[..., :8])
    assert relative(inside[..., 8:], plain[..., 8:]) < EXACT
    assert relative(everywhere, plain) > 1e-2
    # The style's rows keep its prompt: the regions' words are not in them.
    without = styled(tiny(name), lora_of(name), style, start=0.0, mask=left)
    term = ksample(without, positive, negative, latent, steps=1)
    assert relative(term, inside) > 1e-3


def test_nothing_is_left_after_an_error():
    positive, own = cond("sd15", 0), cond("sd15", 1)
    before = weights_hash(tiny("sd15"))
    prompts = region_prompts(("left", own, None, {"lora": lora_of("sd15")}))
    model = regional(tiny("sd15"), [LEFT], prompts)

    def interrupt(apply_model, arguments):
        apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        raise comfy.model_management.InterruptProcessingException

    model.set_model_unet_function_wrapper(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ksample(model, positive, positive, latent_of("sd15"))
    assert hook_count(model) == 0
    assert weights_hash(tiny("sd15")) == before


def test_loras_on_the_model_are_part_of_every_region():
    positive, negative, own = (cond("sd15", seed) for seed in range(3))
    base = patched(tiny("sd15"), lora_of("sd15"))
    wanted = ksample(base, own, negative, latent_of("sd15"), cfg=CFG)
    found = ksample(
        regional(base, [WHOLE], region_prompts(("all", own, None))),
        positive,
        negative,
        latent_of("sd15"),
    )
    assert relative(found, wanted) < EXACT


def test_context_windows_of_a_video():
    """Each window of frames has the regions where they are."""
    positive, negative, own = (cond("wan21", seed) for seed in range(3))

    def windows(model):
        return ContextWindowsManualNode.execute(
            model, 3, 1, "standard_static", 1, False, "pyramid", 2, False
        )[0]

    video = torch.zeros(1, 16, 7, 4, 4)
    wanted = ksample(windows(tiny("wan21")), own, negative, video)
    halves = region_prompts(("left", own, None), ("right", own, None))
    found = ksample(
        regional(windows(tiny("wan21")), [LEFT, RIGHT], halves), positive, negative, video
    )
    assert relative(found, wanted) < EXACT
    assert relative(found, ksample(tiny("wan21"), own, negative, video)) > 1e-3


def test_other_samplers():
    """Samplers that ask twice a step, and one with its own noise."""
    positive, negative, own = (cond("flux", seed) for seed in range(3))
    model = regional(tiny("flux"), [WHOLE], region_prompts(("all", own, None)))
    for sampler in ("heun", "dpmpp_2m", "euler_ancestral", "uni_pc"):

        def run(model, positive, sampler=sampler):
            return nodes.KSampler().sample(
                model, 3, 2, 4.0, sampler, "simple", positive, negative,
                {"samples": latent_of("flux")},
            )[0]["samples"]  # fmt: skip

        assert relative(run(model, positive), run(tiny("flux"), own)) < EXACT
