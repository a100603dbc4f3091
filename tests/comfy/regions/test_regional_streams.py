"""Regions' texts in attention layers: how long they grow, and who hears what in them."""

import pytest
from gated_loras import relative
from regional_case import EXACT, WHOLE, cond, ksample, latent_of, region_prompts, regional
from tiny import tiny


def text_lengths(model):
    """Return a model, and the tokens of all keys that its attention has met."""
    lengths = set()

    def override(function, q, k, *args, **kwargs):
        lengths.add(k.shape[1])
        return function(q, k, *args, **kwargs)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone, lengths


@pytest.mark.parametrize("name", ["sd15", "wan21"])
def test_texts_whose_lengths_would_multiply_run_apart(name):
    """Twelve and thirteen tokens have a common multiple of 156; ComfyUI's own rows run apart."""
    positive, negative, own, unwanted = (cond(name, i, 12 + i // 3) for i in range(4))
    watched, lengths = text_lengths(tiny(name))
    model = regional(watched, [WHOLE], region_prompts(("all", own, unwanted)))
    found = ksample(model, positive, negative, latent_of(name))
    assert relative(found, ksample(tiny(name), own, unwanted, latent_of(name))) < EXACT
    assert max(lengths) <= 64  # the picture's own tokens


@pytest.mark.parametrize("name", ["sd15", "wan21"])
def test_texts_of_one_and_two_chunks_share_a_call(name):
    positive, negative, own, unwanted = (cond(name, i, 12 * (1 + i // 3)) for i in range(4))
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, unwanted)))
    rows = []

    def record(apply_model, arguments):
        rows.append(len(arguments["cond_or_uncond"]))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(record)
    found = ksample(model, positive, negative, latent_of(name))
    assert relative(found, ksample(tiny(name), own, unwanted, latent_of(name))) < EXACT
    assert set(rows) == {2}
