"""Texts, masks and pictures that are refused as regions."""

import json

import numpy as np
import torch
from pack.lora_ops import Box, Region
from pack.nodes.regions.nodes_layout import Regions, RegionsFromColours, RegionsFromMasks
from PIL import Image, ImageDraw

DEFAULTS = {"feather": 0.0, "weight": 1.0, "blend": 0.0, "start_percent": 0.0, "end_percent": 1.0}

REGION = (Region("cat", Box(0, 0, 0.5, 1)),)


def from_masks(masks, names="", **changes):
    wires = {f"mask{i}": mask for i, mask in enumerate(masks)}
    return RegionsFromMasks.execute(wires, names, **{**DEFAULTS, **changes})[0]


def from_colours(picture, colours="", background="#000000, #ffffff", tolerance=0.1, **changes):
    options = {**DEFAULTS, **changes}
    return RegionsFromColours.execute(picture, colours, background, tolerance, **options)[0]


def regions_text(*regions, between=", "):
    """Return the editor's text of regions, each given as name, x, y, width and height."""
    keys = ("name", "x", "y", "width", "height")
    rows = [json.dumps(dict(zip(keys, region, strict=True))) for region in regions]
    return f'{{"regions": [{between.join(rows)}]}}'


MISTAKES = {
    "a number left out": (
        '{"regions": [\n{"name": "a", "x": 0}]}',
        'line 2: region "a" must have a "y"',
    ),
    "a region that ends outside the picture": (
        '{"regions": [\n{"name": "a", "x": 0.6, "y": 0, "width": 0.5, "height": 1}]}',
        "line 2: region .a. must end inside the picture",
    ),
    "a region that lies outside the picture": (
        regions_text(("a", 1.5, 0, 0.5, 1)),
        '"x" of region "a" must lie between 0 and 1, got 1.5',
    ),
    "an inverted region": (
        regions_text(("a", 0, 0, -0.5, 1)),
        '"width" of region "a" must be above 0',
    ),
    "a colon left out": (
        '{"regions": [\n{"name" "a"}]}',
        "line 2: the text must be valid JSON",
    ),
    "an unknown key": (
        '{"regions": [\n{"name": "a", "x": 0, "y": 0, "width": 1, "height": 1, "wide": 1}]}',
        "line 2: .*wide",
    ),
    "a list alone": ("[]", 'line 1: the text must be one object with "regions"'),
    "the same name twice": (
        regions_text(("a", 0, 0, 1, 1), ("a", 0, 0, 1, 1), between=",\n"),
        'line 2: the regions must have each name once, got "a"',
    ),
}


DOT = torch.zeros(1, 512, 512)
DOT[0, 40:50, 40:60] = 1.0
SPOT, TOP = ("dot", 0.1, 0.1, 0.02, 0.02), ("top", 0, 0, 1, 1)


def red_dot():
    picture = torch.ones(1, 512, 512, 3)
    picture[0, 40:50, 40:60] = torch.tensor([1.0, 0.0, 0.0])
    return from_colours(picture, "dot #ff0000")


WARNINGS = {
    "a tiny region": (
        lambda: Regions.execute(regions_text(SPOT, TOP), 512, 512),
        'region "dot" is 10 x 10 of 512 x 512 pixels',
    ),
    "a region wholly under another": (
        lambda: Regions.execute(regions_text(SPOT, TOP), 512, 512),
        'region "dot" lies wholly under "top"',
    ),
    "a tiny mask": (
        lambda: from_masks([DOT, torch.ones(1, 512, 512)], "dot, top"),
        'region "dot" is 20 x 10 of 512 x 512 pixels',
    ),
    "a mask wholly under another": (
        lambda: from_masks([DOT, torch.ones(1, 512, 512)], "dot, top"),
        'region "dot" lies wholly under "top"',
    ),
    "a tiny colour": (red_dot, 'region "dot" is 20 x 10 of 512 x 512 pixels'),
    "regions before, wholly under a mask": (
        lambda: from_masks(
            [torch.ones(1, 512, 512)], "top", more_regions=from_masks([DOT], "under")
        ),
        'region "under" lies wholly under "top"',
    ),
    "regions before, wholly under a colour": (
        lambda: from_colours(torch.ones(1, 512, 512, 3), "all #ffffff", more_regions=REGION),
        'region "cat" lies wholly under "all"',
    ),
}


WRONG_MASKS = {
    "a mask black all over": (
        lambda: from_masks([torch.zeros(1, 8, 8)]),
        'region "region 1" must be white somewhere',
    ),
    "one name for two masks": (
        lambda: from_masks([torch.ones(2, 8, 8)], "cat"),
        "one name for each of the 2 masks, got 1",
    ),
    "a name twice": (
        lambda: from_masks([torch.ones(2, 8, 8)], "cat, cat"),
        'each name once, got "cat" twice',
    ),
    "the name of a region before": (
        lambda: from_masks([torch.ones(1, 8, 8)], "cat", more_regions=REGION),
        'each name once, got "cat" twice',
    ),
    "masks of two sizes": (
        lambda: from_masks([torch.ones(1, 8, 8), torch.ones(1, 8, 16)]),
        "must be of one picture",
    ),
    "a mask that is not a number": (
        lambda: from_masks([torch.full((1, 8, 8), torch.nan)]),
        "must be of finite numbers",
    ),
    "an end at the start": (
        lambda: from_masks([torch.ones(1, 8, 8)], start_percent=0.5, end_percent=0.5),
        "end_percent must be above start_percent",
    ),
}


def sketch(noise=0.0):
    paper = Image.new("RGB", (96, 64), "white")
    pen = ImageDraw.Draw(paper)
    pen.rectangle((0, 0, 31, 63), fill=(250, 10, 10))
    pen.rectangle((48, 16, 79, 63), fill=(20, 30, 240))
    picture = torch.from_numpy(np.array(paper)).float()[None] / 255
    wave = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0)) * noise
    return (picture + wave).clamp(0, 1)


WRONG_PICTURES = {
    "a colour that is not in the picture": (
        sketch(),
        {"colours": "cat #00ff00"},
        'region "cat", #00ff00, must be in the picture',
    ),
    "a colour in words": (
        sketch(),
        {"colours": "x #ff0000\ncat green"},
        "colours, line 2: it must be a name and",
    ),
    "a background in words": (
        sketch(),
        {"background": "white"},
        "a colour must be written as #rrggbb",
    ),
    "a picture of background alone": (
        torch.ones(1, 8, 8, 3),
        {},
        "must have a colour that is no background",
    ),
    "a photograph": (torch.rand(1, 8, 8, 3), {"tolerance": 0.0}, "must have at most 24 colours"),
}
