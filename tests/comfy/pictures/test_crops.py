"""Pictures cut at random: what is kept, where it lies, and that nothing is invented."""

import pytest
import torch
from pack.nodes.pictures.crops import CROPS_PER_PICTURE, crops_of
from pack.nodes.pictures.picture import Picture, pictures_of

SQUARE, PLACED = "random square", "placed at random"


def ramp(height: int, width: int) -> torch.Tensor:
    """A picture whose red says the row and whose green says the column."""
    rows = torch.linspace(0.1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(0.1, 1, width).expand(height, width)
    return torch.stack([rows, columns, torch.ones(height, width)], dim=-1)


def only(image: torch.Tensor, mask: torch.Tensor | None = None, resolution: int = 32) -> Picture:
    masks = () if mask is None else (mask,)
    (found,) = pictures_of([image[None]], masks, ["a"], resolution, 8)
    return found


def test_the_whole_picture_is_what_is_trained_otherwise():
    one = only(ramp(48, 32), torch.ones(1, 48, 32).triu())
    (found,) = crops_of(one, "whole picture", 32, 8, 1)
    for got, wanted in zip(found, one.fitted(), strict=True):
        assert torch.equal(getattr(got, "pixels", got), getattr(wanted, "pixels", wanted))


@pytest.mark.parametrize("size", [(32, 96), (96, 32), (32, 32), (40, 50)])
def test_squares_hold_the_shorter_side_whole_and_lie_anywhere(size):
    image = ramp(*size)
    found = list(crops_of(only(image), SQUARE, 32, 8, 1))
    assert len(found) == CROPS_PER_PICTURE
    places = {fitted.crop for fitted, _ in found}
    longer = size[0] != size[1]
    assert len(places) > 5 if longer else places == {(0, 0)}
    for fitted, mask in found:
        assert mask is None
        assert fitted.size == (32, 32)
        assert fitted.original_size == size
        if min(size) == 32:  # nothing was resized: the very pixels
            top, left = fitted.crop
            assert torch.equal(fitted.pixels, image[top : top + 32, left : left + 32])


def test_small_pictures_give_small_squares_and_no_bound_the_largest():
    for resolution in (512, 0):
        fitted, _ = next(crops_of(only(ramp(30, 44)), SQUARE, resolution, 8, 1))
        assert fitted.size == (24, 24)
    fitted, _ = next(crops_of(only(ramp(80, 160)), SQUARE, 0, 8, 1))
    assert fitted.size == (80, 80)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_placed_pictures_count_where_they_lie(size):
    found = list(crops_of(only(ramp(*size)), PLACED, 32, 8, 1))
    corners, shares = set(), set()
    for fitted, mask in found:
        assert fitted.size == (32, 32)
        rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        height, width = len(rows), len(columns)
        assert max(height, width) == 32  # the longer side fills the square
        inside = mask[top : top + height, left : left + width]
        assert torch.equal(inside, torch.ones(height, width))
        assert float(mask.sum()) == height * width
        assert torch.equal(fitted.pixels[mask == 0], torch.zeros(1024 - height * width, 3))
        assert (fitted.pixels[mask > 0][:, 2] > 0.99).all()
        if size[0] > size[1]:  # a high picture always shows its top
            assert float(fitted.pixels[top, left, 0]) < 0.2
        corners.add((top, left))
        shares.add((height, width))
    assert len(corners) > 3
    if size == (32, 64):
        assert shares == {(32, 32), (16, 32)}
    elif size == (64, 32):
        assert (32, 16) in shares
        assert len(shares) > 4


def test_a_mask_goes_where_its_picture_goes():
    image = ramp(32, 64)
    mask = (image[..., 1] > 0.7).float()
    for how in (SQUARE, PLACED):
        for fitted, counts in crops_of(only(image, mask[None]), how, 32, 8, 1):
            assert counts.any()
            sure = (fitted.pixels[..., 1] - 0.7).abs() > 0.05  # away from the resized edge
            assert torch.equal(counts[sure].round(), (fitted.pixels[..., 1] > 0.7)[sure].float())


def test_no_cut_is_without_what_the_mask_lets_count():
    image, mask = ramp(32, 128), torch.zeros(1, 32, 128)
    mask[..., :8] = 1
    for _, counts in crops_of(only(image, mask), SQUARE, 32, 8, 1):
        assert counts.any()


def test_a_mask_that_no_cut_holds_is_refused():
    image, mask = ramp(60_000, 32), torch.zeros(1, 60_000, 32)
    mask[0, 2000, 3] = 1
    with pytest.raises(ValueError, match="black in every part that was cut out for picture 1"):
        list(crops_of(only(image, mask), SQUARE, 32, 8, 1))


def test_cuts_follow_from_the_seed():
    def drawn(seed: int) -> list[torch.Tensor]:
        return [fitted.pixels for fitted, _ in crops_of(only(ramp(32, 96)), SQUARE, 32, 8, seed)]

    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert not all(map(torch.equal, drawn(1), drawn(2)))
