"""What regional sampling says of bad input: one sentence each, with what to do."""

import logging

import comfy.hooks
import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.model_management
import pytest
import torch
from comfy import model_base
from comfy_extras.nodes_hooks import SetClipHooks
from pack.lora_ops import Box, Region
from pack.nodes.regional import RegionPrompt
from regional_case import (
    EXACT,
    LEFT,
    WHOLE,
    cond,
    ksample,
    latent_of,
    lora_of,
    regional,
    said,
)
from test_gates import hook_count, relative
from tiny import tiny, tiny_clip


def refused(message, function, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def prompt(region="left", text="", negative="", before=None, **more):
    return RegionPrompt.execute(region, text, negative, "", 1.0, before, **more)[0]


def test_prompts():
    clip = tiny_clip()
    refused("must have a CLIP that reads its text, got none", prompt, text="a cat")
    refused("must have a CLIP that reads its negative", prompt, negative="a cat")
    refused("must name its region, got an empty name", prompt, " ", "a cat", clip=clip)
    refused(
        'each region must have one prompt, got two for "left"',
        prompt,
        "left",
        before=prompt("left", "a cat", clip=clip),
    )
    refused(
        "its text as a text or as CONDITIONING, got both",
        prompt,
        text="a cat",
        clip=clip,
        positive_conditioning=cond("sd15"),
    )
    refused(
        "must be one prompt, got 2 combined parts",
        prompt,
        positive_conditioning=[*cond("sd15"), *cond("sd15", 1)],
    )
    refused("every <name> in the prompt must be a connected concept", _unknown_concept)


def _unknown_concept():
    from concept_inputs import concept_for

    concept = concept_for(tiny("sd15_layers"), "sks")
    prompt(text="a <cat>", clip=tiny_clip(), concepts={"concept0": (concept,)})


def test_options_of_a_ready_conditioning_are_said_to_have_no_effect(caplog):
    masked = [[cond("sd15")[0][0], {"mask": torch.ones(1, 8, 8)}]]
    with caplog.at_level(logging.WARNING):
        prompt(positive_conditioning=masked)
    assert 'the mask of the text of region "left" has no effect' in caplog.text


def test_common_words_do_not_reach_a_ready_conditioning_which_is_said(caplog):
    first = RegionPrompt.execute("a", "a cat", "", "in ink,", 1.0, clip=tiny_clip())[0]
    with caplog.at_level(logging.WARNING):
        prompt("b", before=first, positive_conditioning=cond("sd15"))
    assert 'the common words do not stand before the CONDITIONING of region "b"' in caplog.text


def lora_hooks():
    return comfy.hooks.create_hook_lora(dict(lora_of("sd15")), 1.0, 1.0)


def test_hooks_of_a_ready_conditioning_are_said_to_have_no_effect(caplog):
    hooked = comfy.hooks.set_hooks_for_conditioning(cond("sd15"), lora_hooks())
    with caplog.at_level(logging.WARNING):
        prompt(positive_conditioning=hooked)
    assert 'the hooks of the text of region "left" has no effect' in caplog.text
    assert "connect a LoRA of the region to its lora input" in caplog.text


def test_a_clip_with_scheduled_hooks_is_refused():
    hooks = lora_hooks()
    hooks.set_keyframes_on_hooks(two_keyframes())
    clip = SetClipHooks().apply_hooks(tiny_clip(), True, True, hooks)[0]
    refused("must be one prompt, got 2 combined parts", prompt, text="a cat", clip=clip)


def two_keyframes():
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=1.0))
    frames.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.5))
    return frames


def test_a_prompt_of_no_region():
    refused(
        "every region prompt must name a region, got \"dog\", where there is 'left'",
        regional,
        tiny("sd15"),
        [LEFT],
        said(("dog", cond("sd15"), None)),
    )


def test_no_region_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        regional(tiny("sd15"), [])
    assert "there is no region" in caplog.text


def test_a_lora_of_another_architecture_names_its_region():
    refused(
        'region "left": the LoRA must be made for this architecture, Flux',
        regional,
        tiny("flux"),
        [LEFT],
        said(("left", None, None, {"lora": lora_of("sd15")})),
    )


def test_regions_are_given_once():
    model = regional(tiny("sd15"), [LEFT])
    refused("from one Apply Regional Attention", regional, model, [LEFT])


def test_a_network_without_regions_is_refused_by_name():
    class Unknown(torch.nn.Module):
        pass

    model = tiny("sd15", fresh=True)
    model.model.diffusion_model = Unknown()
    refused("of SD1.5.*, got BaseModel with Unknown", regional, model, [LEFT])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flux", model_base.LongCatImage),
        ("flux", model_base.Chroma),
        ("wan21", model_base.WAN21_Vace),
    ],
)
def test_a_model_that_reads_its_text_in_another_way_is_refused_by_name(name, kind):
    """Its network may be of a known class, as LongCat-Image's is."""
    model = tiny(name, fresh=True)
    model.model.__class__ = kind
    refused(f"of SD1.5.*, got {kind.__name__} with", regional, model, [LEFT])


def test_a_network_with_more_text_layers_is_refused_by_name():
    class More(type(tiny("wan21").model.diffusion_model)):
        pass

    model = tiny("wan21", fresh=True)
    model.model.diffusion_model.__class__ = More
    refused("of SD1.5.*, got WAN21 with More", regional, model, [LEFT])


def test_a_mask_of_another_shape():
    mask = Region("all", WHOLE.box, mask=torch.ones(8, 16))
    model = regional(tiny("sd15"), [mask], said(("all", cond("sd15", 2), None)))
    refused(
        "must have the proportions of the picture, got 16 x 8 for a latent of 8 x 8",
        ksample,
        model,
        cond("sd15"),
        cond("sd15", 1),
        latent_of("sd15"),
    )
    assert hook_count(model) == 0


def test_several_gpus():
    model = regional(tiny("sd15"), [LEFT], said(("left", cond("sd15", 2), None)))
    model.set_additional_models("multigpu", [tiny("sd15")])
    refused(
        "regions must run on a single GPU",
        ksample,
        model,
        cond("sd15"),
        cond("sd15", 1),
        latent_of("sd15"),
    )


def test_tiles_are_refused():
    model = regional(tiny("sd15"), [LEFT], said(("left", cond("sd15", 2), None)))

    def tiled(apply_model, arguments):
        tile = arguments["input"][..., :4]
        out = apply_model(tile, arguments["timestep"], **arguments["c"])
        return torch.cat([out, out], -1)

    model.set_model_unet_function_wrapper(tiled)
    refused(
        "regions must see the whole picture in one call, got a part of 4 x 8 of 8 x 8",
        ksample,
        model,
        cond("sd15"),
        cond("sd15", 1),
        latent_of("sd15"),
        error=RuntimeError,
    )
    assert hook_count(model) == 0


def test_texts_that_are_too_long_beside_the_picture(monkeypatch):
    model = regional(tiny("flux"), [LEFT], said(("left", cond("flux", 2), None)))
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 1000)
    refused(
        "the texts of all regions must fit beside the picture",
        ksample,
        model,
        cond("flux"),
        cond("flux", 1),
        latent_of("flux"),
        error=RuntimeError,
    )


def test_an_attention_backend_without_masks_is_replaced_for_those_calls(monkeypatch, caplog):
    """PyTorch's serves in its place, which is said once; the result is the same."""
    own, negative = cond("flux", 2), cond("flux", 1)
    model = regional(tiny("flux"), [LEFT], said(("left", own, None)))
    wanted = ksample(model, cond("flux"), negative, latent_of("flux"))

    @comfy.ldm.modules.attention.wrap_attn
    def attention_sage(q, k, v, heads, mask=None, **kwargs):
        assert mask is None
        return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads, **kwargs)

    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", attention_sage)
    with caplog.at_level(logging.WARNING):
        found = ksample(model, cond("flux"), negative, latent_of("flux"))
    assert relative(found, wanted) < EXACT
    assert len([r for r in caplog.records if "takes no masks" in r.getMessage()]) == 1


def test_a_small_box_keeps_a_cell_or_has_none_by_the_papers_rule():
    own, plain = cond("sd15", 2), cond("sd15", 0)
    dot = Region("dot", Box(0.51, 0.51, 0.6, 0.6))
    prompts = said(("dot", own, None))
    base = ksample(tiny("sd15"), plain, cond("sd15", 1), latent_of("sd15"))
    found = {}
    for cells in ("at least one cell", "whole cells (paper)"):
        model = regional(tiny("sd15"), [dot], prompts, cells=cells)
        found[cells] = ksample(model, plain, cond("sd15", 1), latent_of("sd15"))
    assert relative(found["at least one cell"], base) > 1e-4
    assert relative(found["whole cells (paper)"], base) < EXACT
