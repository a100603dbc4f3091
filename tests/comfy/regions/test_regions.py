"""Regions from text, layouts, masks and colours, and how they are shown."""

import json
import logging

import pytest
import torch
from pack.lora_ops import Box, Region, region_mask
from pack.nodes.regions.nodes_layout import (
    Regions,
    RegionsFromMasks,
    ShowRegions,
)
from region_refusals import (
    DEFAULTS,
    MISTAKES,
    WARNINGS,
    WRONG_MASKS,
    WRONG_PICTURES,
    from_colours,
    from_masks,
    sketch,
)

TEXT = json.dumps(
    {
        "regions": [
            {"name": "cat", "x": 0, "y": 0.25, "width": 0.5, "height": 0.75, "feather": 0.1},
            {"name": "dog", "x": 0.5, "y": 0, "width": 0.5, "height": 1, "colour": "#123456"},
        ]
    }
)


def show(regions, width=128, height=64, opacity=0.4, region="", picture=None):
    locked = ShowRegions.PREPARE_CLASS_CLONE(None)
    return locked.execute(regions, width, height, opacity, region, picture)


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


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_text_are_named_with_their_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        Regions.execute(text, 512, 512)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("action", "message"), WARNINGS.values(), ids=WARNINGS)
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


@pytest.mark.parametrize(("action", "message"), WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_masks_that_are_no_regions(action, message):
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_regions_from_colours():
    regions = from_colours(sketch())
    assert [region.name for region in regions] == ["red", "blue"]
    assert [region.colour for region in regions] == ["#fa0a0a", "#141ef0"]
    assert regions[1].box == Box(0.5, 0.25, 80 / 96, 1)
    assert int(region_mask(regions[0], (64, 96)).sum()) == 32 * 64


def test_named_colours_forgive_noise():
    regions = from_colours(sketch(0.02), "cat #ff0000\ndog: #0000ff", tolerance=0.2)
    assert [region.name for region in regions] == ["cat", "dog"]
    assert int(region_mask(regions[0], (64, 96)).sum()) == pytest.approx(32 * 64, rel=0.02)


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
        {"mask0": torch.ones(1, 8, 8)}, "fog", *DEFAULTS.values(), more_regions=first
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
