"""Style guidance under core's samplers and guiders equals predictions made alone."""

import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider
from gated_loras import relative
from guidance_case import (
    CFG,
    SCALE,
    SEED,
    STEPS,
    TOLERANCE,
    agree,
    empty_latent,
    expected,
    is_up,
    ksample,
    lora_of,
    observed,
    prompts,
    sample_with,
    sigmas_of,
    styled,
    window,
)
from pack.training.files.lora_state import LoraState
from tiny import tiny, tiny_cond

import nodes


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "wan21"])
def test_ksampler(name):
    positive, negative, style = prompts(name, 12)
    latent, lora = empty_latent(name), lora_of(name)
    with observed(tiny(name)) as rows:
        found = ksample(styled(tiny(name), lora, style), positive, negative, latent)
    assert rows == [2, 3, 3, 3]
    wanted = expected(name, positive, negative, [(lora, style, window(name))], latent)
    agree(found, wanted)
    plain = ksample(tiny(name), positive, negative, latent)
    assert relative(found, plain) > 100 * TOLERANCE


def test_ksampler_advanced_in_two_halves():
    positive, negative, style = prompts("flux")
    latent, lora = empty_latent("flux"), lora_of("flux")
    model = styled(tiny("flux"), lora, style)
    halves = [("enable", 0, 2, "enable"), ("disable", 2, 10000, "disable")]
    state = {"samples": latent}
    with observed(tiny("flux")) as rows:
        for noise, first, last, leftover in halves:
            state = nodes.KSamplerAdvanced().sample(
                model, noise, SEED, STEPS, CFG, "euler", "normal", positive, negative, state,
                first, last, leftover,
            )[0]  # fmt: skip
    assert rows == [2, 3, 3, 3]
    wanted = expected("flux", positive, negative, [(lora, style, window("flux"))], latent)
    agree(state["samples"], wanted)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_cfg_guider(name):
    positive, negative, style = prompts(name)
    latent, lora = empty_latent(name), lora_of(name)
    model = styled(tiny(name), lora, style)
    with observed(model) as rows:
        guider = CFGGuider.execute(model, positive, negative, CFG)[0]
        found = sample_with(guider, model, latent)
    assert rows == [2, 3, 3, 3]
    wanted = expected(name, positive, negative, [(lora, style, window(name))], latent)
    agree(found, wanted)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_basic_guider(name):
    positive, _, style = prompts(name)
    latent, lora = empty_latent(name), lora_of(name)
    model = styled(tiny(name), lora, style)
    with observed(model) as rows:
        found = sample_with(BasicGuider.execute(model, positive)[0], model, latent)
    assert rows == [1, 2, 2, 2]
    wanted = expected(name, positive, None, [(lora, style, window(name))], latent, cfg=1)
    agree(found, wanted)


@pytest.mark.parametrize("start", [0.0, 0.2])
def test_cfg_of_one_asks_for_no_negative(start):
    positive, negative, style = prompts("flux")
    latent, lora = empty_latent("flux"), lora_of("flux")
    with observed(tiny("flux")) as rows:
        model = styled(tiny("flux"), lora, style, start=start)
        found = ksample(model, positive, negative, latent, cfg=1.0)
    assert rows == [2 if start == 0 else 1, 2, 2, 2]
    styles = [(lora, style, window("flux", start=start))]
    wanted = expected("flux", positive, negative, styles, latent, cfg=1)
    agree(found, wanted)


def test_batch_of_three():
    positive, negative, style = prompts("flux")
    latent, lora = empty_latent("flux", 3), lora_of("flux")
    with observed(tiny("flux")) as rows:
        found = ksample(styled(tiny("flux"), lora, style), positive, negative, latent)
    assert rows == [6, 9, 9, 9]
    wanted = expected("flux", positive, negative, [(lora, style, window("flux"))], latent)
    agree(found, wanted)


def test_chained_styles_are_terms_of_their_own():
    """Equation 11: two LoRAs with prompts, scales and windows of their own, in one forward."""
    positive, negative, style = prompts("flux")
    other_style = tiny_cond(tiny("flux"), seed=9)
    latent, one, two = empty_latent("flux"), lora_of("flux"), lora_of("flux", 1)
    model = styled(tiny("flux"), one, style, 2.0)
    model = styled(model, two, other_style, 1.5, 0.5, 0.9, 0.7)
    with observed(model) as rows:
        found = ksample(model, positive, negative, latent)
    assert rows == [2, 3, 4, 3]
    weaker = {key: value * 0.7 if is_up(key) else value for key, value in two.items()}
    styles = [
        (one, style, window("flux", 2.0)),
        (weaker, other_style, window("flux", 1.5, 0.5, 0.9)),
    ]
    wanted = expected("flux", positive, negative, styles, latent)
    agree(found, wanted)


def test_schedule_multiplies_the_scale():
    """The steps lie at percents 0, 1/3, 2/3 and 1, but for the smallest sigma."""
    positive, negative, style = prompts("flux")
    latent, lora = empty_latent("flux"), lora_of("flux")
    model = styled(tiny("flux"), lora, style, schedule="0.25:1, 0.4:0, 0.6:0, 0.8:0.5")
    with observed(model) as rows:
        found = ksample(model, positive, negative, latent)
    assert rows == [2, 3, 3, 3]
    _, *later, _ = (float(sigma) for sigma in sigmas_of(tiny("flux")))
    third = (1 - float(tiny("flux").get_model_object("model_sampling").sigma_min)) / 3
    scales = [(0.4 - third) / 0.15, (2 * third - 0.6) / 0.2 * 0.5, 0.5]
    factors = {sigma: SCALE * scale for sigma, scale in zip(later, scales, strict=True)}
    styles = [(lora, style, lambda sigma: factors.get(sigma, 0.0))]
    wanted = expected("flux", positive, negative, styles, latent)
    agree(found, wanted)


@pytest.mark.parametrize(("name", "batch"), [("flux", 2), ("wan21", 1)])
def test_mask_multiplies_the_term(name, batch):
    positive, negative, style = prompts(name, 12)
    latent, lora = empty_latent(name, batch), lora_of(name)
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    model = styled(tiny(name), lora, style, mask=mask)
    found = ksample(model, positive, negative, latent)
    on_latent = torch.zeros_like(latent)
    on_latent[..., :4] = SCALE
    styles = [(lora, style, window(name, on_latent))]
    wanted = expected(name, positive, negative, styles, latent)
    agree(found, wanted)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sd15", {"scale": 0.0}),
        ("flux", {"scale": 0.0}),
        ("flux", {"start": 1.0}),
        ("flux", {"schedule": "0:0"}),
    ],
    ids=["scale on a UNet", "scale", "start", "schedule"],
)
def test_no_scale_is_the_plain_sampler_bit_for_bit(name, options):
    positive, negative, style = prompts(name)
    latent = empty_latent(name)
    with observed(tiny(name)) as plain_rows:
        plain = ksample(tiny(name), positive, negative, latent)
    with observed(tiny(name)) as rows:
        model = styled(tiny(name), lora_of(name), style, **options)
        found = ksample(model, positive, negative, latent)
    assert rows == plain_rows == [2] * STEPS
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_untrained_lora_and_the_same_prompt_change_nothing(name):
    positive, negative, _ = prompts(name, 12)
    latent = empty_latent(name)
    lora = lora_of(name)
    untrained = LoraState({key: value * 0 if is_up(key) else value for key, value in lora.items()})
    plain = ksample(tiny(name), positive, negative, latent)
    model = styled(tiny(name), untrained, positive, 20.0, 0.0)
    assert relative(ksample(model, positive, negative, latent), plain) < 1e-5


def test_one_row_per_call_equals_all_rows_in_one(monkeypatch):
    """Where memory is short, core splits a step's rows; each keeps its gate."""
    positive, negative, style = prompts("flux")
    latent, lora = empty_latent("flux", 2), lora_of("flux")
    model = styled(styled(tiny("flux"), lora, style), lora_of("flux", 1), positive)
    together = ksample(model, positive, negative, latent)
    monkeypatch.setattr("comfy.model_base.BaseModel.memory_required", lambda *args, **kwargs: 1e30)
    with observed(model) as rows:
        apart = ksample(model, positive, negative, latent)
    assert rows == [2] * (2 + 4 + 4 + 4)
    assert relative(apart, together) < 1e-5


def test_two_samplers_of_one_graph_do_not_mix():
    """Models that share their network, guided differently, and a plain one between them."""
    positive, negative, style = prompts("flux")
    latent = empty_latent("flux")
    base = tiny("flux")
    one = styled(base, lora_of("flux"), style)
    two = styled(one, lora_of("flux", 1), positive, 1.0, 0.5)
    alone = styled(base, lora_of("flux", 1), positive, 1.0, 0.5)
    models = {"one": one, "two": two, "base": base, "alone": alone}
    with observed(base):
        runs = [
            {name: ksample(models[name], positive, negative, latent) for name in order}
            for order in (("one", "two", "base", "alone"), ("alone", "base", "two", "one"))
        ]
    for name in models:
        assert torch.equal(runs[0][name], runs[1][name])
    latents = list(runs[0].values())
    assert all(relative(a, b) > TOLERANCE for i, a in enumerate(latents) for b in latents[i + 1 :])
