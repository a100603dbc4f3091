"""Soft edges of regions where prompts have areas of their own (Conditioning Set Area)."""

import pytest
import torch
from gated_loras import relative
from pack.lora_ops import Box, Region, token_masks
from pack.nodes.regions.layout.region_maps import RegionMaps
from regional_case import EXACT, cond, ksample, latent_of, region_prompts, regional
from tiny import tiny

import nodes

SOFT = 0.4
LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)


@pytest.mark.parametrize("box", [LEFT, RIGHT], ids=["beside", "upon"])
@pytest.mark.parametrize("level", [1, 2])
def test_an_area_sees_a_soft_edge_as_the_whole_picture_does(box, level):
    """Beside the area, with its soft edge alone inside, and upon the area's border."""
    region = Region("cat", box, feather=SOFT)
    grid, half = (8 // level, 8 // level), (8 // level, 4 // level)
    whole = token_masks([region], grid).reshape(grid)
    area = RegionMaps([region], [True], (8, 8), (8, 4, 0, 4), "centre")
    assert not area.empty
    found = area.masks(half).reshape(half)
    torch.testing.assert_close(found, whole[:, half[1] :])
    assert bool(((found > 0) & (found < 1)).any())


def halves():
    """Return the positive prompt of the two halves of a latent of 8 x 16, each by itself."""
    set_area = nodes.ConditioningSetArea().append
    words = cond("sd15", 0)
    return [*set_area(words, 64, 64, 0, 0, 1.0)[0], *set_area(words, 64, 64, 64, 0, 1.0)[0]]


def sampled(*regions):
    prompts = region_prompts(("cat", cond("sd15", 2), None)) if regions else None
    model = regional(tiny("sd15"), regions, prompts)
    # Without a negative prompt, which sees the whole picture, no half knows of the other.
    return ksample(model, halves(), cond("sd15", 1), latent_of("sd15", 8, 16), cfg=1.0)


def test_a_soft_edge_is_heard_beyond_the_border_between_two_areas():
    plain, hard = sampled(), sampled(Region("cat", LEFT))
    soft = sampled(Region("cat", LEFT, feather=SOFT))
    assert relative(hard[..., 8:], plain[..., 8:]) < EXACT
    assert relative(soft[..., 8:], plain[..., 8:]) > 1e-3
    assert relative(soft[..., :8], hard[..., :8]) > 1e-3
