"""A ControlNet's strength for each region, on residuals of every level."""

import logging
from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.t2i_adapter.adapter
import pytest
import torch
from gated_loras import relative
from pack.lora_ops import Box, Region, strength_map
from pack.nodes.regions.layout.sets import WHOLE_CELLS, RegionDefaults, regions_from_masks
from pack.nodes.regions.sampling import control as regional_control
from regional import overwritten, paper_cells
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
from regional_control_case import (
    STRENGTHS,
    controlled,
    covered,
    on_a_wide_mask,
    sampled,
    twice,
    weighted,
)
from tiny import tiny, tiny_controlnet


@pytest.fixture(scope="module")
def controlnet():
    return tiny_controlnet()


class Shallow(comfy.t2i_adapter.adapter.Adapter):
    """An adapter for the tiny UNet, which has fewer blocks before its levels than SD1.5."""

    def forward(self, x):
        return {
            "input": [feature for feature in super().forward(x)["input"] if feature is not None]
        }


@pytest.fixture(scope="module")
def adapter():
    """A T2I-Adapter of SD1.5's class, random."""
    torch.manual_seed(3)
    network = Shallow(
        cin=192, channels=[320, 320], nums_rb=1, ksize=1, sk=True, use_conv=False, xl=False
    ).requires_grad_(False)
    return comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact")


@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_one_everywhere_is_the_plain_control_and_zero_is_none(kind, request):
    control = request.getfixturevalue(kind)
    plain = sampled(control, 0.8)
    assert relative(sampled(weighted(control, [WHOLE]), 0.8), plain) < EXACT
    assert relative(sampled(weighted(control, [], outside=1.0), 0.8), plain) < EXACT
    none = sampled(None)
    assert relative(sampled(weighted(control, [WHOLE], "all 0"), 0.8), none) < EXACT
    assert relative(plain, none) > 1e-3
    half = sampled(weighted(control, [WHOLE], "all: 0.5"), 0.8)
    assert relative(half, sampled(control, 0.4)) < EXACT
    assert relative(sampled(control, 0.8), plain) < EXACT  # the input is as it was


def test_the_papers_map_at_all_levels(controlnet):
    """R2: later boxes overwrite earlier ones, against a plain loop on each residual's grid."""
    boxes = [(0, 8, 40, 64), (16, 0, 64, 40)]
    regions = [
        Region(f"{i}", Box(left / 64, top / 64, right / 64, bottom / 64))
        for i, (top, left, bottom, right) in enumerate(boxes)
    ]
    seen = {}

    def kept(control, key):
        original = type(control).get_control

        def get_control(self, *args):
            found = original(self, *args)
            seen.setdefault(key, {k: [r.clone() for r in v] for k, v in found.items()})
            return found

        control.get_control = get_control.__get__(control)
        return control

    def copying(control, key):
        before = control.copy
        control.copy = lambda: kept(before(), key)
        return control

    sampled(copying(controlnet.copy(), "plain"))
    ours = weighted(controlnet, regions, "0 0.3\n1 2", outside=0.7, cells=WHOLE_CELLS)
    sampled(copying(ours, "ours"))
    grids = set()
    for key, residuals in seen["plain"].items():
        for plain, found in zip(residuals, seen["ours"][key], strict=True):
            grid = tuple(plain.shape[-2:])
            cells = [paper_cells(box, 64, 64, grid) for box in boxes]
            wanted = torch.tensor(overwritten(cells, [0.3, 2.0], 0.7, grid))
            torch.testing.assert_close(found[:1], plain[:1] * wanted, rtol=1e-4, atol=1e-6)
            grids.add(grid)
    assert grids


def test_several_controls_are_mixed_each_with_its_own_strengths(controlnet, adapter):
    pair = cond("sd15", 0), cond("sd15", 1)
    first = weighted(controlnet, [WHOLE], "all 0.5")
    second = weighted(adapter, [WHOLE], "all 0.25")
    both = controlled(second, *controlled(first, *pair))
    found = ksample(tiny("sd15"), *both, latent_of("sd15"))
    plain = controlled(adapter, *controlled(controlnet, *pair, 0.5), 0.25)
    assert relative(found, ksample(tiny("sd15"), *plain, latent_of("sd15"))) < EXACT


def test_left_alone_where_it_has_no_strength(controlnet):
    """What a control adds to a layer lies inside its region alone."""
    control = weighted(controlnet, [LEFT])
    residual = torch.ones(2, 320, 8, 8)
    half = control.pastiche_strengths.weighted(residual, (8, 8))
    assert bool((half[..., :4] == 1).all())
    assert not half[..., 4:].any()
    tokens = control.pastiche_strengths.weighted(torch.ones(1, 16, 5), (8, 8))
    assert tokens[0, :, 0].reshape(4, 4).sum(0).tolist() == [4, 4, 0, 0]


def test_a_mask_lies_on_residuals_of_other_sizes(controlnet):
    """A mask of any size, of the picture's proportions, is averaged onto each level's cells."""
    mask = torch.zeros(1, 48, 48)
    mask[..., :24] = 1.0
    regions = regions_from_masks({"mask0": mask}, "left", RegionDefaults())
    assert (
        relative(sampled(weighted(controlnet, regions)), sampled(weighted(controlnet, [LEFT])))
        < EXACT
    )


def test_a_mask_of_another_shape_is_refused(controlnet):
    with pytest.raises(ValueError, match=r'"wide" must have the proportions .* got 64 x 32 for'):
        on_a_wide_mask(controlnet)


def test_a_level_is_laid_once_in_a_run_and_forgotten_after_it(controlnet, monkeypatch):
    made = []

    def counted(*args, **options):
        made.append(args[2])
        return strength_map(*args, **options)

    monkeypatch.setattr(regional_control, "strength_map", counted)
    control = weighted(controlnet, [LEFT])
    pair = controlled(control, cond("sd15", 0), cond("sd15", 1))
    ksample(tiny("sd15"), *pair, latent_of("sd15"))
    assert made
    assert len(made) == len(set(made))  # once for each grid, over several steps
    assert not pair[0][0][1]["control"].pastiche_strengths._on_grid


def test_settings_of_the_prompt_change_no_strength(controlnet):
    acting = replace(LEFT, weight=0.0, blend=1.0, start_percent=0.9)
    assert torch.equal(
        sampled(weighted(controlnet, [acting])), sampled(weighted(controlnet, [LEFT]))
    )


def test_beside_regional_attention(controlnet):
    """The ControlNet reads the sampler's prompt, the picture hears its regions."""
    own, negative, lora = cond("sd15", 0), cond("sd15", 1), lora_of("sd15")
    prompts = region_prompts(("all", own, negative, {"lora": lora}))
    plain = sampled(controlnet)
    model = regional(tiny("sd15"), [WHOLE], region_prompts(("all", own, negative)))
    assert relative(sampled(controlnet, model=model), plain) < EXACT
    model = regional(tiny("sd15"), [WHOLE], prompts)
    assert relative(sampled(controlnet, model=model), plain) > 1e-3


@pytest.mark.parametrize(("strengths", "message"), STRENGTHS.values(), ids=STRENGTHS)
def test_mistakes_in_strengths(controlnet, strengths, message):
    with pytest.raises(ValueError, match=message) as caught:
        weighted(controlnet, [LEFT], strengths)
    assert "\n" not in str(caught.value)


def test_a_strength_without_effect_is_said(controlnet, caplog):
    with caplog.at_level(logging.WARNING):
        weighted(controlnet, [LEFT, RIGHT], "left 0.5")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        covered(controlnet)
    (record,) = caplog.records
    assert 'the strength of region "left" has no effect' in record.getMessage()
    assert 'under "all"' in record.getMessage()


def test_strengths_are_given_once(controlnet):
    with pytest.raises(ValueError, match="from one Regional Control Weight"):
        twice(controlnet)
