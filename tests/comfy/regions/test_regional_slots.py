"""Attention slots that other nodes hold: chained, replaced with a word, or refused; never lost."""

import logging

import pytest
from comfy.ldm.modules.attention import attention_pytorch
from gated_loras import hook_count, relative
from pack.lora_ops import Box, Region
from pack.nodes.regions.sampling import masks as regional_masks
from regional_case import EXACT, LEFT, RIGHT, cond, ksample, latent_of, region_prompts, regional
from tiny import tiny


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """After every test the shared networks are as they were."""
    yield
    for name in ("sd15", "sd3", "flux", "wan21"):
        assert hook_count(tiny(name)) == 0


FORWARDS = {
    "sd15": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.forward",
    "wan21": "diffusion_model.blocks.0.cross_attn.forward",
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_text_layer_whose_attention_cannot_be_reached_is_refused(name):
    """Another node's forward that calls an attention of its own must not pass the region on."""
    model = tiny(name, fresh=True)  # ComfyUI leaves a bound forward on the layer it took one off
    layer = model.get_model_object(FORWARDS[name].removesuffix(".forward"))

    def forward(x, context=None, **kwargs):
        q, k, v = (layer.to_q, layer.to_k, layer.to_v) if name == "sd15" else layer_of_wan(layer)
        heads = layer.heads if name == "sd15" else layer.num_heads
        out = attention_pytorch(q(x), k(context), v(context), heads)
        return (layer.to_out if name == "sd15" else layer.o)(out)

    model.add_object_patch(FORWARDS[name], forward)
    model = regional(model, [LEFT], region_prompts(("left", cond(name, 2), None)))
    with pytest.raises(RuntimeError, match="regions must reach every layer that reads the text"):
        ksample(model, cond(name), cond(name, 1), latent_of(name))


def layer_of_wan(layer):
    return layer.q, layer.k, layer.v


@pytest.mark.parametrize("batch", [1, 2])
def test_a_replacement_that_changes_the_texts_own_attention(batch):
    """Halved: it is so for every region's text, with all rows and tokens in one call."""

    def halved(q, k, v, extra):
        assert q.shape[:2] == (2 * batch, 64)
        return 0.5 * attention_pytorch(q, k, v, extra["n_heads"])

    def replaced(model):
        clone = model.clone()
        clone.set_model_attn2_replace(halved, "input", 1)
        return clone

    own, other, negative = cond("sd15", 2), cond("sd15", 3), cond("sd15", 1)
    latent = latent_of("sd15", batch=batch)
    prompts = region_prompts(("left", own, None), ("right", own, None))
    found = ksample(
        regional(replaced(tiny("sd15")), [LEFT, RIGHT], prompts), other, negative, latent
    )
    wanted = ksample(replaced(tiny("sd15")), own, negative, latent)
    assert relative(found, wanted) < EXACT
    # in the left half alone, it is what the same attention in place of the function is
    prompts = region_prompts(("left", own, negative))
    found = ksample(regional(replaced(tiny("sd15")), [LEFT], prompts), other, negative, latent)

    def function(function, q, k, v, *args, **kwargs):
        return (0.5 if k.shape[1] % 12 == 0 else 1.0) * function(q, k, v, *args, **kwargs)

    model = regional(overridden(tiny("sd15"), function), [LEFT], prompts)
    assert relative(found, ksample(model, other, negative, latent)) < EXACT


def overridden(model, override):
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def attention_override_sage(function, q, k, v, heads, mask=None, **kwargs):
    return attention_pytorch(q, k, v, heads, **kwargs)


def unmasked(function, q, k, v, heads, mask=None, **kwargs):
    return function(q, k, v, heads, **kwargs)


def own_kernel(function, q, k, v, heads, mask=None, **kwargs):
    return attention_pytorch(q, k, v, heads, mask=mask, **kwargs)


@pytest.mark.parametrize("override", [attention_override_sage, unmasked, own_kernel])
def test_another_nodes_attention_that_loses_masks_is_replaced_which_is_said(override, caplog):
    regions, prompts = [LEFT, RIGHT], region_prompts(("left", cond("flux", 2), None))
    inputs = cond("flux"), cond("flux", 1), latent_of("flux")
    wanted = ksample(regional(tiny("flux"), regions, prompts), *inputs)
    with caplog.at_level(logging.WARNING):
        found = ksample(regional(overridden(tiny("flux"), override), regions, prompts), *inputs)
    assert relative(found, wanted) < EXACT
    said_of_it = [r for r in caplog.records if "takes no masks" in r.getMessage()]
    assert len(said_of_it) == 1
    assert override.__name__ in said_of_it[0].getMessage()


def test_another_nodes_attention_that_hands_masks_on_is_kept(caplog):
    """Every attention is doubled, with and without a mask."""

    def doubled(function, *args, **kwargs):
        assert function.__name__.startswith("attention_")  # some tell functions by their names
        return 2 * function(*args, **kwargs)

    own, negative = cond("flux", 2), cond("flux", 1)
    prompts = region_prompts(("all", own, negative))
    whole = [Region("all", Box(0, 0, 1, 1))]
    model = regional(overridden(tiny("flux"), doubled), whole, prompts, pooled="global prompt's")
    with caplog.at_level(logging.WARNING):
        found = ksample(model, cond("flux"), negative, latent_of("flux"))
    with_pooled = [[own[0][0], cond("flux")[0][1]]]
    wanted = ksample(overridden(tiny("flux"), doubled), with_pooled, negative, latent_of("flux"))
    assert relative(found, wanted) < EXACT
    assert "takes no masks" not in caplog.text


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_rows_of_different_masks_run_apart_where_memory_is_short(name, monkeypatch):
    """The positive's rows have a text of their own in the region, the negative's have not."""
    model = regional(tiny(name), [LEFT], region_prompts(("left", cond(name, 2, 9), None)))
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: 0)
    inputs = cond(name), cond(name, 1), latent_of(name, batch=2)
    together = ksample(model, *inputs)
    asked = []

    def free(device):
        asked.append(device)
        return 1.5 * 4 * (12 + 9 + 16) ** 2

    monkeypatch.setattr(regional_masks, "_free_memory", free)
    assert relative(ksample(model, *inputs), together) < EXACT
    # once for a run, as the masks are the same in all of it
    assert len(asked) == 1
