"""Regions under guiders with other lists of prompts than a positive and a negative."""

import logging

import pytest
from comfy_extras.nodes_custom_sampler import DualCFGGuider, DualModelGuider
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from gated_loras import hook_count, patched, relative
from guidance_case import sample_with
from regional_case import EXACT, WHOLE, cond, ksample, latent_of, lora_of, region_prompts, regional
from tiny import tiny


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_lists_beside_positive_and_negative_keep_their_own_prompt(name):
    positive, negative, third, own, unwanted = (cond(name, seed) for seed in range(5))
    model = regional(tiny(name), [WHOLE], region_prompts(("all", own, unwanted)))

    def perp_neg(model, positive, negative):
        return PerpNegGuider.execute(model, positive, negative, third, 5.0, 0.7)[0]

    def dual(model, positive, negative):
        return DualCFGGuider.execute(model, positive, third, negative, 5.0, 3.0, "regular")[0]

    for guider in (perp_neg, dual):
        found = sample_with(guider(model, positive, negative), model, latent_of(name))
        wanted = sample_with(guider(tiny(name), own, unwanted), tiny(name), latent_of(name))
        assert relative(found, wanted) < EXACT


def test_loras_of_regions_act_in_every_list():
    positive, negative, third = (cond("sd15", seed) for seed in range(3))
    lora = lora_of("sd15")

    def guider(model):
        return PerpNegGuider.execute(model, positive, negative, third, 5.0, 0.7)[0]

    model = patched(tiny("sd15"), lora)
    wanted = sample_with(guider(model), model, latent_of("sd15"))
    tiny("sd15").unpatch_model()
    model = regional(tiny("sd15"), [WHOLE], region_prompts(("all", None, None, {"lora": lora})))
    found = sample_with(guider(model), model, latent_of("sd15"))
    assert relative(found, wanted) < EXACT
    assert hook_count(model) == 0


def test_prompts_that_are_predicted_out_of_reach_are_said_once(caplog):
    positive, negative, own, unwanted = (cond("sd15", seed) for seed in range(4))
    regions, prompts = [WHOLE], region_prompts(("all", own, unwanted))

    def messages():
        return [r for r in caplog.records if "regions do not reach a prompt" in r.getMessage()]

    with caplog.at_level(logging.WARNING):
        model = regional(tiny("sd15"), regions, prompts)
        guider = DualModelGuider.execute(model, positive, 5.0, tiny("sd15"), negative)[0]
        found = sample_with(guider, model, latent_of("sd15"))
    assert len(messages()) == 1
    plain = DualModelGuider.execute(tiny("sd15"), own, 5.0, tiny("sd15"), negative)[0]
    assert relative(found, sample_with(plain, tiny("sd15"), latent_of("sd15"))) < EXACT
    with caplog.at_level(logging.WARNING):
        deprecated = PerpNeg.execute(tiny("sd15"), cond("sd15", 4), 1.0)[0]
        inputs = positive, negative, latent_of("sd15")
        ksample(regional(deprecated, regions, prompts), *inputs)
    assert len(messages()) == 2
