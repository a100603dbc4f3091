"""ControlNets whose strength depends on the region."""

import torch
from pack.nodes.regions.layout.sets import KEEPS_A_CELL, RegionDefaults, regions_from_masks
from pack.nodes.regions.nodes_apply import RegionalControlWeight
from regional_case import LEFT, WHOLE, cond, ksample, latent_of
from tiny import tiny

import nodes


def weighted(control, regions, strengths="", inside=1.0, outside=0.0, cells=KEEPS_A_CELL):
    return RegionalControlWeight.execute(control, regions, strengths, inside, outside, cells)[0]


def hint():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def controlled(control, positive, negative, strength=1.0):
    return nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control, hint(), strength, 0.0, 1.0
    )


def sampled(control, strength=1.0, model=None, latent=None):
    pair = cond("sd15", 0), cond("sd15", 1)
    if control is not None:
        pair = controlled(control, *pair, strength)
    latent = latent_of("sd15") if latent is None else latent
    return ksample(tiny("sd15") if model is None else model, *pair, latent)


def on_a_wide_mask(control):
    """Sample a square picture with a control whose region's mask is twice as wide as high."""
    regions = regions_from_masks({"mask0": torch.ones(1, 32, 64)}, "wide", RegionDefaults())
    return sampled(weighted(control, regions))


STRENGTHS = {
    "a word for a number": (
        "left much",
        "line 1: it must be a region's name and a number from 0 to 10, such as \"cat",
    ),
    "a negative strength": (
        "\nleft -1",
        "line 2: it must be a region's name and a number",
    ),
    "a number alone": ("0.8", "line 1: it must be a region's name"),
    "a region that is not there": (
        "cat 0.8",
        'it must name a region that is there, got "cat" where there is "left"',
    ),
    "a region twice": (
        "left 1\nleft 2",
        'line 2: a region must be named once, got "left" twice',
    ),
}


def covered(control):
    """Give a strength to a region that another region covers."""
    return weighted(control, [LEFT, WHOLE], "left 0.5")


def twice(control):
    return weighted(weighted(control, [LEFT]), [LEFT])
