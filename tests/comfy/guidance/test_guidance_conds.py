"""A style row follows its positive entry in everything but the text."""

import logging

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from guidance_case import (
    agree,
    empty_latent,
    expected,
    ksample,
    lora_of,
    network,
    observed,
    prompts,
    styled,
    window,
    with_style_text,
)
from pack.nodes.guidance.rows import style_rows
from tiny import tiny, tiny_cond, tiny_controlnet, tiny_vae

import nodes


@pytest.fixture(scope="module")
def controlnet():
    return tiny_controlnet()


def check(name, positive, negative, style, rows_per_step, *, alone=None, latent=None, **more):
    """Compare KSampler with the oracle, and the rows of each step with what they should be.

    Args:
        name: Of the tiny model.
        positive: CONDITIONING.
        negative: CONDITIONING.
        style: CONDITIONING as the node gets it.
        rows_per_step: Rows of the forwards of a plain and of a styled step, each sorted.
        alone: The style's CONDITIONING as it should count; made of positive and style if None.
        latent: Start.
        more: For the oracle.
    """
    lora = lora_of(name.split("_")[0])
    latent = empty_latent("sd15" if "sd15" in name else name) if latent is None else latent
    options = {"noise_mask": more["noise_mask"]} if "noise_mask" in more else {}
    with observed(tiny(name)) as rows:
        found = ksample(styled(tiny(name), lora, style), positive, negative, latent, **options)
    plain, of_style = rows_per_step
    steps = [rows[: len(plain)]]
    for step in range(3):
        first = len(plain) + step * len(of_style)
        steps.append(rows[first : first + len(of_style)])
    assert [sorted(step) for step in steps] == [plain, of_style, of_style, of_style]
    assert len(rows) == len(plain) + 3 * len(of_style)
    styles = [(lora, alone or with_style_text(positive, style), window(name))]
    agree(found, expected(name, positive, negative, styles, latent, **more))


def halves(one, two):
    """Return two prompts combined, each on one half of the picture."""
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    set_mask = nodes.ConditioningSetMask().append
    left = set_mask(one, mask, "default", 1.0)[0]
    right = set_mask(two, 1 - mask, "default", 0.8)[0]
    return left + right


def test_controlnet_is_shared(controlnet):
    """The style row's control is computed with the style's prompt, in the same forward."""
    positive, negative, style = prompts("sd15")
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(positive, negative, controlnet, hint, 0.8, 0.0, 0.9)
    check("sd15", positive, negative, style, ([2], [3]))


def test_controlnet_on_the_positive_only(controlnet):
    positive, negative, style = prompts("sd15")
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    positive = nodes.ControlNetApply().apply_controlnet(positive, controlnet, hint, 0.8)[0]
    check("sd15", positive, negative, style, ([2], [3]))


def test_one_style_serves_masked_prompts():
    positive, negative, style = prompts("sd15")
    positive = halves(positive, tiny_cond(tiny("sd15"), seed=7))
    check("sd15", positive, negative, style, ([3], [5]))


def test_as_many_styles_as_prompts_pair_in_order():
    positive, negative, style = prompts("flux", 12)
    other = tiny_cond(tiny("flux"), 12, seed=8)
    positive = halves(positive, tiny_cond(tiny("flux"), 12, seed=7))
    check("flux", positive, negative, style + other, ([3], [5]))


def test_area_only_on_the_negative():
    """The area's part of the positive, which core adds, is styled too."""
    positive, negative, style = prompts("sd15")
    negative = nodes.ConditioningSetArea().append(negative, 32, 64, 0, 0, 1.0)[0]
    check("sd15", positive, negative, style, ([1, 2], [2, 3]))


def test_area_only_on_the_style_prompt_has_no_effect_and_says_so(caplog):
    positive, negative, style = prompts("sd15")
    on_area = nodes.ConditioningSetArea().append(style, 32, 64, 0, 0, 1.0)[0]
    with caplog.at_level(logging.WARNING):
        check("sd15", positive, negative, on_area, ([2], [3]), alone=style)
    assert "the style prompt's area, set_area_to_bounds, strength has no effect" in caplog.text


def test_inpainting_model_and_noise_mask():
    positive, negative, style = prompts("sd15")
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:] = 1.0
    positive, negative, latent = nodes.InpaintModelConditioning().encode(
        positive, negative, pixels, tiny_vae(), mask
    )
    check(
        "sd15_inpaint",
        positive,
        negative,
        style,
        ([2], [3]),
        latent=latent["samples"],
        noise_mask=latent["noise_mask"],
    )


def test_flux_guidance_is_the_positives():
    positive, negative, style = prompts("flux", 12)
    positive = FluxGuidance.execute(positive, 7.0)[0]
    check("flux", positive, negative, style, ([2], [3]))


def test_hook_lora_on_the_positive():
    """Core patches the weights for rows with the hook; the style's LoRA comes on top."""
    positive, negative, style = prompts("flux", 12)
    hooks = comfy.hooks.create_hook_lora(dict(lora_of("flux", 2)), 0.8, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    check("flux", positive, negative, style, ([1, 1], [1, 2]))


def test_prompts_of_77_and_154_tokens_share_a_forward():
    positive, negative, _ = prompts("sd15")
    check("sd15", positive, negative, tiny_cond(tiny("sd15"), 154, seed=2), ([2], [3]))


@pytest.mark.parametrize("name", ["flux", "wan21"])
def test_t5_prompts_of_other_length_run_beside(name):
    positive, negative, _ = prompts(name, 12)
    check(name, positive, negative, tiny_cond(tiny(name), 20, seed=2), ([2], [1, 2]))


def test_timesteps_and_strength_are_the_positives():
    positive, negative, style = prompts("flux", 12)
    late = tiny_cond(tiny("flux"), 12, seed=7)
    set_range = nodes.ConditioningSetTimestepRange().set_range
    positive = set_range(positive, 0.0, 0.5)[0] + set_range(late, 0.5, 1.0)[0]
    check("flux", positive, negative, style, ([2], [3]))


def test_a_style_row_has_every_key_but_the_text():
    control, third_party = object(), object()
    positive = [
        {
            "cross_attn": torch.zeros(1, 77, 8),
            "pooled_output": torch.zeros(1, 8),
            "attention_mask": torch.ones(1, 77),
            "control": control,
            "third_party": third_party,
            "guidance": 4.0,
            "uuid": "one",
            "model_conds": {"extra": 1},
        }
    ]
    text = torch.ones(1, 12, 8)
    (row,) = style_rows(positive, [[text, {"pooled_output": None}]])
    assert row["cross_attn"] is text
    assert row["pooled_output"] is None
    assert "attention_mask" not in row
    assert row["control"] is control
    assert row["third_party"] is third_party
    assert row["guidance"] == 4.0
    assert row["uuid"] != "one"
    assert row["model_conds"] == {"extra": 1}
    assert row["model_conds"] is not positive[0]["model_conds"]


def test_other_counts_are_refused():
    positive, negative, style = prompts("flux", 12)
    model = styled(tiny("flux"), lora_of("flux"), style * 3)
    with observed(model), pytest.raises(ValueError, match="got 3 parts for 2; connect one"):
        ksample(model, positive * 2, negative, empty_latent("flux"))


def test_networks_of_the_oracle_are_apart():
    assert network("flux", "cond").model is not network("flux", "uncond").model
