"""What regional sampling says of bad input: one sentence each, with what to do."""

import logging

import pytest
from gated_loras import hook_count, relative
from pack.lora_ops import Box, Region
from regional_case import (
    EXACT,
    cond,
    ksample,
    latent_of,
    region_prompts,
    regional,
)
from regional_refusals import (
    MODELS,
    NOTES,
    PROMPTS,
    REFUSED_SAMPLING,
    leave_no_room,
    on_left,
    sample,
    take_no_masks,
)
from tiny import tiny


def refused(message, function, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("action", "message"), PROMPTS.values(), ids=PROMPTS)
def test_prompts(action, message):
    refused(message, action)


@pytest.mark.parametrize(("action", "messages"), NOTES.values(), ids=NOTES)
def test_what_has_no_effect_is_said(caplog, action, messages):
    with caplog.at_level(logging.WARNING):
        action()
    for message in messages:
        assert message in caplog.text


@pytest.mark.parametrize(("action", "message"), MODELS.values(), ids=MODELS)
def test_models_and_prompts_that_do_not_fit_are_refused_by_name(action, message):
    refused(message, action)


@pytest.mark.parametrize(
    ("make", "message", "error"), REFUSED_SAMPLING.values(), ids=REFUSED_SAMPLING
)
def test_what_a_sampler_finds_is_refused_and_leaves_nothing(make, message, error):
    model = make()
    refused(message, sample, model, error=error)
    assert hook_count(model) == 0


def test_texts_that_are_too_long_beside_the_picture(monkeypatch):
    model = on_left("flux")
    leave_no_room(monkeypatch)
    refused(
        "the texts of all regions must fit beside the picture",
        sample,
        model,
        "flux",
        error=RuntimeError,
    )


def test_an_attention_backend_without_masks_is_replaced_for_those_calls(monkeypatch, caplog):
    """PyTorch's serves in its place, which is said once; the result is the same."""
    model = on_left("flux")
    wanted = sample(model, "flux")
    take_no_masks(monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = sample(model, "flux")
    assert relative(found, wanted) < EXACT
    assert len([r for r in caplog.records if "takes no masks" in r.getMessage()]) == 1


def test_a_small_box_keeps_a_cell_or_has_none_by_the_papers_rule():
    own, plain = cond("sd15", 2), cond("sd15", 0)
    dot = Region("dot", Box(0.51, 0.51, 0.6, 0.6))
    prompts = region_prompts(("dot", own, None))
    base = ksample(tiny("sd15"), plain, cond("sd15", 1), latent_of("sd15"))
    found = {}
    for cells in ("at least one cell", "whole cells (paper)"):
        model = regional(tiny("sd15"), [dot], prompts, cells=cells)
        found[cells] = ksample(model, plain, cond("sd15", 1), latent_of("sd15"))
    assert relative(found["at least one cell"], base) > 1e-4
    assert relative(found["whole cells (paper)"], base) < EXACT
