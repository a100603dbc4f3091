"""Regions on any grid, against loops over cells."""

import random

import pytest
import regional
import torch
from pack.lora_ops.regions import (
    Box,
    Region,
    cells,
    region_mask,
    strength_map,
    token_grid,
    token_masks,
    within_area,
)


def pixels(top, left, bottom, right, height, width) -> Box:
    return Box(left / width, top / height, right / width, bottom / height)


# R1: methods/mix_of_show.md, section 5.
GOLDEN_BOXES = [(10, 20, 100, 130), (30, 100, 128, 250)]


def mask_of(found: set[tuple[int, int]], grid: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(grid)
    for y, x in found:
        mask[y, x] = 1.0
    return mask


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        ((16, 32), [(2, 3, 12, 16), (4, 13, 16, 31)]),
        ((8, 16), [(1, 2, 6, 8), (2, 7, 8, 15)]),
        ((4, 8), [(1, 1, 3, 4), (1, 4, 4, 7)]),
        ((2, 4), [(1, 1, 1, 2), (1, 2, 2, 3)]),
    ],
)
def test_golden_cell_boxes(grid, wanted):
    found = [cells(pixels(*box, 128, 256), grid, "paper") for box in GOLDEN_BOXES]
    assert found == wanted


def test_the_order_of_float_operations_is_the_papers():
    assert cells(pixels(232, 0, 448, 448, 448, 448), (56, 56), "paper").top == 30  # exactly: 29
    assert cells(pixels(0, 0, 240, 704, 704, 704), (88, 88), "paper").bottom == 29  # exactly: 30


def random_case(draw: random.Random):
    height, width = draw.randrange(256, 2049, 64), draw.randrange(256, 2049, 64)
    top, left = draw.randrange(height), draw.randrange(width)
    box = (top, left, draw.randrange(top + 1, height + 1), draw.randrange(left + 1, width + 1))
    return height, width, box


def test_cells_on_500_random_boxes_and_sizes():
    draw = random.Random(0)
    for _ in range(500):
        height, width, box = random_case(draw)
        level = draw.choice([16, 32, 64])  # /8 has 65,536 cells to loop over; rounding is alike
        grid = (height // level, width // level)
        region = Region("a", pixels(*box, height, width))
        by_paper = regional.paper_cells(box, height, width, grid)
        assert region_mask(region, grid, rule="paper").equal(mask_of(by_paper, grid))
        shares = (box[0] / height, box[1] / width, box[2] / height, box[3] / width)
        by_centre = regional.centre_cells(shares, grid)
        assert by_centre
        assert region_mask(region, grid).equal(mask_of(by_centre, grid))


# the grid
@pytest.mark.parametrize(
    ("height", "width", "tokens", "grid"),
    [
        (64, 64, 4096, (64, 64)),
        (64, 64, 64, (8, 8)),
        (65, 97, 33 * 49, (33, 49)),
        (65, 97, 17 * 25, (17, 25)),
        (65, 97, 9 * 13, (9, 13)),
        (128, 256, 512, (16, 32)),
        (7, 5, 4 * 3, (4, 3)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_the_grid_of_a_layer(height, width, tokens, grid):
    assert token_grid(height, width, tokens) == grid


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="64 x 64 latent must halve to 100 tokens"):
        token_grid(64, 64, 100)


def test_regions_scale_with_the_latent():
    region = Region("a", Box(0.25, 0.5, 0.75, 1.0))
    small, large = region_mask(region, (8, 8)), region_mask(region, (16, 16))
    assert large.equal(small.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_thirds_share_every_cell_of_every_level():
    thirds = [Region(f"{i}", Box(i / 3, 0, (i + 1) / 3, 1)) for i in range(3)]
    for size in range(1, 97):
        masks = token_masks(thirds, (1, size))
        if size >= 3:
            assert masks.sum(0).equal(torch.ones(size))
        assert bool((masks.sum(1) >= 1).all())


# feather and masks
def test_neighbours_with_a_feather_fade_into_each_other():
    for feather in (0.05, 0.3, 1.0):
        regions = [
            Region("a", Box(0, 0, 0.3, 0.5), feather=feather),
            Region("b", Box(0.3, 0, 0.5, 0.5), feather=feather),
            Region("c", Box(0.5, 0, 1, 0.5), feather=feather),
            Region("d", Box(0, 0.5, 1, 1), feather=feather),
        ]
        masks = token_masks(regions, (20, 30))
        torch.testing.assert_close(masks.sum(0), torch.ones(600))
        assert bool((masks >= 0).all())


def test_a_feather_is_as_wide_as_the_shorter_side_says():
    mask = region_mask(Region("a", Box(0, 0, 0.5, 1), feather=0.5), (8, 32))
    row = mask[0]
    assert row[:14].equal(torch.ones(14))
    assert row[18:].equal(torch.zeros(14))
    torch.testing.assert_close(row[14:18], torch.tensor([0.875, 0.625, 0.375, 0.125]))
    assert mask.equal(row.expand(8, 32))  # the picture's own border is no edge


def test_a_mask_is_averaged_over_each_cell():
    mask = torch.zeros(8, 8)
    mask[:4, :6] = 1.0
    found = region_mask(Region("a", Box(0, 0, 1, 1), mask=mask), (2, 2))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    enlarged = region_mask(Region("a", Box(0, 0, 1, 1), mask=mask), (16, 16))
    torch.testing.assert_close(enlarged, mask.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_tiny_region_keeps_a_cell_at_coarse_levels():
    tiny = Box(0.61, 0.30, 0.62, 0.32)
    for region in (
        Region("box", tiny),
        Region("soft", tiny, feather=0.01),
        Region("mask", Box(0, 0, 1, 1), mask=mask_of({(31, 61)}, (100, 100))),
    ):
        found = region_mask(region, (4, 4))
        assert float(found[1, 2]) == pytest.approx(1.0)
        assert float(found.sum()) == pytest.approx(1.0)
    assert float(region_mask(Region("a", tiny), (4, 4), rule="paper").sum()) == 0.0


def test_a_box_that_reaches_in_from_outside_keeps_its_cell_there():
    outside = Region("a", Box(-0.5, 0, 0.05, 1))
    assert not region_mask(outside, (2, 4)).any()
    assert region_mask(Region("a", Box(-0.5, 0, 0.15, 1)), (2, 4)).equal(
        mask_of({(0, 0), (1, 0)}, (2, 4))
    )
    edge = Region("a", Box(1 - 1e-16 * 2, 0, 1, 1))
    assert region_mask(edge, (1, 4)).equal(mask_of({(0, 3)}, (1, 4)))


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (500, 700)])
def test_a_speck_in_a_grey_mask_raises_one_cell_alone(size):
    mask = torch.full(size, 0.3)
    mask[1, 2] = 1.0
    found = region_mask(Region("a", Box(0, 0, 1, 1), mask=mask), (8, 8))
    assert float(found[0, 0]) == 1.0
    found[0, 0] = 0.3
    # The mean of thousands of pixels in fp32.
    torch.testing.assert_close(found, torch.full((8, 8), 0.3), atol=1e-4, rtol=0)


def test_a_masks_peak_of_half_its_white_is_left_as_it_is():
    mask = torch.full((16, 16), 0.2)
    mask[:2, :1] = 1.0
    found = region_mask(Region("a", Box(0, 0, 1, 1), mask=mask), (8, 8))
    assert float(found.max()) == pytest.approx(0.6)


def test_an_empty_mask_stays_empty():
    region = Region("a", Box(0, 0, 1, 1), mask=torch.zeros(6, 6))
    assert region_mask(region, (3, 3)).equal(torch.zeros(3, 3))


def test_a_part_of_the_picture_sees_its_part_of_a_region():
    region = Region("a", Box(0.25, 0.0, 0.75, 0.5))
    seen = within_area(region, Box(0.5, 0.0, 1.0, 1.0), (4, 8))
    assert seen == Region("a", Box(-0.5, 0.0, 0.5, 0.5))
    assert region_mask(seen, (4, 4)).equal(region_mask(region, (4, 8))[:, 4:])
    soft = Region("b", Box(0.0, 0.0, 0.75, 1.0), feather=0.2)
    part = within_area(soft, Box(0.5, 0.0, 1.0, 1.0), (8, 16))
    torch.testing.assert_close(region_mask(part, (8, 8)), region_mask(soft, (8, 16))[:, 8:])
    part = within_area(soft, Box(0.7, 0.25, 0.8, 0.75), (160, 160))
    torch.testing.assert_close(
        region_mask(part, (80, 16)), region_mask(soft, (160, 160))[40:120, 112:128]
    )
    assert within_area(Region("c", Box(0, 0, 0.5, 1)), Box(0.5, 0, 1, 1), (4, 8)) is None
    masked = Region("d", Box(0, 0, 1, 1), mask=mask_of({(0, 5)}, (4, 8)))
    part = within_area(masked, Box(0.5, 0, 1, 1), (4, 8))
    assert region_mask(part, (4, 4)).equal(mask_of({(0, 1)}, (4, 4)))


def random_edges(draw: random.Random, area: tuple[float, float], cells: int):
    """Two edges, often upon the border of the picture, of the area, or of a cell."""
    while True:
        low, high = sorted(
            draw.choice([0.0, 1.0, *area, draw.randint(0, cells) / cells, draw.random()])
            for _ in range(2)
        )
        if low < high:
            return low, high


def test_parts_of_the_picture_see_random_regions_as_the_whole_does():
    draw = random.Random(4)
    touched_softly = on_the_border = 0
    for _ in range(2000):
        grid = draw.randrange(2, 30), draw.randrange(2, 30)
        spans = [sorted(draw.sample(range(count + 1), 2)) for count in grid]
        (top, bottom), (left, right) = spans
        part = Box(left / grid[1], top / grid[0], right / grid[1], bottom / grid[0])
        x = random_edges(draw, (part.left, part.right), grid[1])
        y = random_edges(draw, (part.top, part.bottom), grid[0])
        box = Box(x[0], y[0], x[1], y[1])
        # A feather below a cell keeps one cell of a faint region, which a part can't know of.
        feather = draw.choice([0.0, draw.uniform(1 / min(grid), 1.0)])
        region = Region("a", box, feather=feather)
        seen = within_area(region, part, grid)
        wanted = region_mask(region, grid)[top:bottom, left:right]
        shape = (bottom - top, right - left)
        found = torch.zeros(shape) if seen is None else region_mask(seen, shape)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0, msg=f"{region} in {part}")
        apart = box.right <= part.left or part.right <= box.left
        touched_softly += apart and bool(wanted.any())
        on_the_border += 0 < box.left == part.left and bool((wanted > 0).any()) and feather > 0
    assert min(touched_softly, on_the_border) > 50


# R2
def test_strength_maps_at_all_levels_against_a_loop():
    height, width = 512, 768
    boxes = [(0, 0, 300, 400), (100, 200, 512, 500), (250, 30, 400, 760)]
    values = [1.0, 0.0, 0.8]
    regions = [Region("a", pixels(*box, height, width)) for box in boxes]
    for level in (8, 16, 32, 64):
        grid = (height // level, width // level)
        found = [regional.paper_cells(box, height, width, grid) for box in boxes]
        wanted = torch.tensor(regional.overwritten(found, values, 0.3, grid))
        torch.testing.assert_close(
            strength_map(regions, values, grid, outside=0.3, rule="paper"), wanted
        )


def test_strength_maps_on_random_boxes_against_a_loop():
    draw = random.Random(2)
    for _ in range(60):
        height, width, _box = random_case(draw)
        grid = (height // 64, width // 64)
        shares = []
        for _ in range(3):
            top, left = draw.random(), draw.random()
            bottom, right = top + draw.random() * (1 - top), left + draw.random() * (1 - left)
            shares.append((top, left, bottom, right))
        values = [draw.random() for _ in shares]
        regions = [Region("a", Box(b[1], b[0], b[3], b[2])) for b in shares]
        found = [regional.centre_cells(box, grid) for box in shares]
        wanted = torch.tensor(regional.overwritten(found, values, 1.0, grid))
        torch.testing.assert_close(strength_map(regions, values, grid), wanted)


def test_a_feathered_region_fades_its_strength_in():
    region = Region("a", Box(0, 0, 0.5, 1), feather=0.5)
    found = strength_map([region], [0.0], (8, 32), outside=1.0)
    torch.testing.assert_close(found, 1 - region_mask(region, (8, 32)))


# bad input
@pytest.mark.parametrize(
    ("box", "says"),
    [
        (Box(0.5, 0, 0.5, 1), 'region "cat" must be wider than 0, got left 0.5 and right 0.5'),
        (Box(0, 0.8, 1, 0.2), 'region "cat" must be higher than 0, got top 0.8 and bottom 0.2'),
        (Box(float("nan"), 0, 1, 1), 'region "cat" must be of finite numbers'),
    ],
)
def test_an_inverted_box_is_refused(box, says):
    with pytest.raises(ValueError, match=says):
        Region("cat", box)


def test_a_wrong_number_of_strengths_or_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match='rule must be "centre" or "paper", got "near"'):
        cells(Box(0, 0, 1, 1), (2, 2), "near")
    with pytest.raises(ValueError, match="a strength for each region, got 0 for 1"):
        strength_map([Region("a", Box(0, 0, 1, 1))], [], (2, 2))
