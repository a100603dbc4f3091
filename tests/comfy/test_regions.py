"""Regions from text, layouts, masks and colours, and how they are shown."""

import json
import logging

import numpy as np
import pytest
import torch
from pack.lora_ops import Box, Region, region_mask
from pack.nodes.regions.nodes_layout import (
    Regions,
    RegionsFromColours,
    RegionsFromMasks,
    ShowRegions,
)
from PIL import Image, ImageDraw

TEXT = json.dumps(
    {
        "regions": [
            {"name": "cat", "x": 0, "y": 0.25, "width": 0.5, "height": 0.75, "feather": 0.1},
            {"name": "dog", "x": 0.5, "y": 0, "width": 0.5, "height": 1, "colour": "#123456"},
        ]
    }
)
MANNER = {"feather": 0.0, "weight": 1.0, "blend": 0.0, "start_percent": 0.0, "end_percent": 1.0}


REGION = (Region("cat", Box(0, 0, 0.5, 1)),)


def show(regions, width=128, height=64, opacity=0.4, region="", picture=None):
    locked = ShowRegions.PREPARE_CLASS_CLONE(None)
    return locked.execute(regions, width, height, opacity, region, picture)


def from_masks(masks, names="", **changes):
    wires = {f"mask{i}": mask for i, mask in enumerate(masks)}
    return RegionsFromMasks.execute(wires, names, **{**MANNER, **changes})[0]


def from_colours(picture, colours="", background="#000000, #ffffff", tolerance=0.1, **changes):
    options = {**MANNER, **changes}
    return RegionsFromColours.execute(picture, colours, background, tolerance, **options)[0]


def test_regions_from_text():
    regions, width, height = Regions.execute(TEXT, 768, 512).result
    assert [region.name for region in regions] == ["cat", "dog"]
    assert regions[0].box == Box(0, 0.25, 0.5, 1)
    assert regions[0].feather == 0.1
    assert regions[0].colour.startswith("#")
    assert regions[1].colour == "#123456"
    assert (width, height) == (768, 512)


def test_no_text_has_no_regions_and_a_background_gives_the_size():
    regions, width, height = Regions.execute("", 768, 512, "", torch.zeros(1, 96, 160, 3)).result
    assert (regions, width, height) == ((), 160, 96)


def test_a_layout_takes_the_place_of_the_boxes():
    regions = Regions.execute(TEXT, 768, 512, "1,2,1 / 1").result[0]
    assert [region.name for region in regions] == [f"region {i}" for i in range(1, 5)]
    assert regions[1].box == Box(0.25, 0, 0.75, 0.5)
    assert len({region.colour for region in regions}) == 4


def written(*regions, between=", "):
    """Return regions as the editor's text: a name and x, y, width, height of each."""
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
        written(("a", 1.5, 0, 0.5, 1)),
        '"x" of region "a" must lie between 0 and 1, got 1.5',
    ),
    "an inverted region": (
        written(("a", 0, 0, -0.5, 1)),
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
        written(("a", 0, 0, 1, 1), ("a", 0, 0, 1, 1), between=",\n"),
        'line 2: the regions must have each name once, got "a"',
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_text_are_named_with_their_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Regions.execute(text, 512, 512)
    assert "\n" not in str(caught.value)


DOT = torch.zeros(1, 512, 512)
DOT[0, 40:50, 40:60] = 1.0
SPOT, TOP = ("dot", 0.1, 0.1, 0.02, 0.02), ("top", 0, 0, 1, 1)


def red_dot():
    picture = torch.ones(1, 512, 512, 3)
    picture[0, 40:50, 40:60] = torch.tensor([1.0, 0.0, 0.0])
    return from_colours(picture, "dot #ff0000")


ODD = {
    "a tiny region": (
        lambda: Regions.execute(written(SPOT, TOP), 512, 512),
        'region "dot" is 10 x 10 of 512 x 512 pixels',
    ),
    "a region wholly under another": (
        lambda: Regions.execute(written(SPOT, TOP), 512, 512),
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


@pytest.mark.parametrize(("action", "message"), ODD.values(), ids=ODD)
def test_tiny_and_covered_regions_are_said(caplog, action, message):
    with caplog.at_level(logging.WARNING):
        action()
    assert any(message in record.getMessage() for record in caplog.records)


def test_nothing_is_said_of_halves(caplog):
    with caplog.at_level(logging.WARNING):
        half = torch.zeros(2, 64, 64)
        half[0, :, :32], half[1, :, 32:] = 1.0, 1.0
        from_masks([half])
    assert not caplog.records


def test_regions_from_masks():
    mask = torch.zeros(2, 64, 96)
    mask[0, 16:32, :48], mask[1, :, 48:] = 1.0, 0.5
    regions = from_masks([mask, torch.ones(32, 48)], "cat, dog\nfog", weight=2.0)
    assert [region.name for region in regions] == ["cat", "dog", "fog"]
    assert regions[0].box == Box(0, 0.25, 0.5, 0.5)
    assert regions[0].weight == 2.0
    assert torch.equal(region_mask(regions[0], (64, 96)), mask[0])
    assert torch.equal(region_mask(regions[1], (8, 12))[:, 6:], torch.full((8, 6), 0.5))


def test_a_masks_edge_is_feathered():
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    (soft,) = from_masks([mask], feather=0.25)
    row = region_mask(soft, (64, 64))[0]
    assert bool((row.diff() <= 1e-6).all())
    assert row[:23].tolist() == pytest.approx([1.0] * 23)
    assert row[41:].tolist() == pytest.approx([0.0] * 23)
    assert float(row[32]) == pytest.approx(0.5, abs=0.05)


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


@pytest.mark.parametrize(("action", "message"), WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_masks_that_are_no_regions(action, message):
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def painted(noise=0.0):
    paper = Image.new("RGB", (96, 64), "white")
    pen = ImageDraw.Draw(paper)
    pen.rectangle((0, 0, 31, 63), fill=(250, 10, 10))
    pen.rectangle((48, 16, 79, 63), fill=(20, 30, 240))
    picture = torch.from_numpy(np.array(paper)).float()[None] / 255
    wave = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0)) * noise
    return (picture + wave).clamp(0, 1)


def test_regions_from_colours():
    regions = from_colours(painted())
    assert [region.name for region in regions] == ["red", "blue"]
    assert [region.colour for region in regions] == ["#fa0a0a", "#141ef0"]
    assert regions[1].box == Box(0.5, 0.25, 80 / 96, 1)
    assert int(region_mask(regions[0], (64, 96)).sum()) == 32 * 64


def test_named_colours_forgive_noise():
    regions = from_colours(painted(0.02), "cat #ff0000\ndog: #0000ff", tolerance=0.2)
    assert [region.name for region in regions] == ["cat", "dog"]
    assert int(region_mask(regions[0], (64, 96)).sum()) == pytest.approx(32 * 64, rel=0.02)


WRONG_PICTURES = {
    "a colour that is not in the picture": (
        painted(),
        {"colours": "cat #00ff00"},
        'region "cat", #00ff00, must be in the picture',
    ),
    "a colour in words": (
        painted(),
        {"colours": "x #ff0000\ncat green"},
        "colours, line 2: it must be a name and",
    ),
    "a background in words": (
        painted(),
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


@pytest.mark.parametrize(
    ("picture", "options", "message"), WRONG_PICTURES.values(), ids=WRONG_PICTURES
)
def test_pictures_without_regions(picture, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_colours(picture, **options)
    assert "\n" not in str(caught.value)


def test_more_regions_come_first():
    first = Regions.execute(TEXT, 512, 512).result[0]
    both = RegionsFromMasks.execute(
        {"mask0": torch.ones(1, 8, 8)}, "fog", *MANNER.values(), more_regions=first
    )[0]
    assert [region.name for region in both] == ["cat", "dog", "fog"]
    assert len({region.colour for region in both}) == 3


def test_numbers_of_masks_leave_out_those_that_are_taken():
    kept = tuple(Region(name, Box(0, 0, 1, 1)) for name in ("region 1", "region 4"))
    found = from_masks([torch.ones(3, 8, 8)], more_regions=kept)
    names = ["region 1", "region 4", "region 3", "region 5", "region 6"]
    assert [region.name for region in found] == names


def test_shown_regions():
    regions = Regions.execute(TEXT, 128, 64).result[0]
    picture = torch.zeros(2, 64, 128, 3)
    image, mask = show(regions, picture=picture, opacity=0.5, region="dog").result
    assert image.shape == (2, 64, 128, 3)
    torch.testing.assert_close(
        image[0, 3, 124], torch.tensor([0x12, 0x34, 0x56]) / 510, atol=0.01, rtol=0
    )
    assert not image[0, 3, 3].any()
    assert mask.shape == (1, 64, 128)
    assert mask[0, 0].tolist() == [0.0] * 64 + [1.0] * 64
    assert not picture.any()
    alone = show((Region("cat", Box(0, 0, 1, 1)),), opacity=0.0)[0]
    blank = show((), opacity=0.0)[0]
    assert not torch.equal(alone, blank)  # its outline and its name are drawn
    with pytest.raises(ValueError, match='a region of the name "bird", got cat, dog'):
        show(regions, region="bird")


def test_no_regions_are_shown_as_an_empty_mask():
    image, mask = show((), 40, 24).result
    assert image.shape == (1, 24, 40, 3)
    assert not mask.any()
