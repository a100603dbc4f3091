"""Convert regions of a picture to masks on any grid of cells or tokens.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CellRule = Literal["centre", "paper"]
# Rules for the cells of a box: "centre" takes the cells whose centre lies in the box, and at least
# one; "paper" takes only cells that lie entirely in the box.
CELL_RULES: tuple[CellRule, ...] = ("centre", "paper")

# In cells: an edge within this distance of a cell's centre counts as lying on it, so that
# neighbouring boxes agree on the cell.
TIE = 1e-9

_BEYOND = 1e6  # in fractions of an area: farther than any feather reaches

Grid = tuple[int, int]


class Box(NamedTuple):
    """A rectangle in fractions of the picture's width and height."""

    left: float
    top: float
    right: float
    bottom: float


class Cells(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a grid, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Region:
    """A named part of the picture, independent of the picture's size.

    Args:
        name: Name by which region prompts select the region.
        box: Rectangle in fractions of the picture.
        feather: Width of the soft edge, half of it outside the box, as a fraction of the shorter
            side.
        weight: Weight relative to other regions where they overlap.
        blend: Fraction of the global prompt inside the region.
        start_percent: Fraction of the sampling run at which the region starts to act.
        end_percent: Fraction of the sampling run at which it stops.
        colour: Colour in the editor, ``#rrggbb``.
        mask: ``(h, w)`` in 0..1 over the whole picture; it replaces the box.

    Raises:
        ValueError: The box is inverted, empty or not finite.
    """

    name: str
    box: Box
    feather: float = 0.0
    weight: float = 1.0
    blend: float = 0.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    colour: str = ""
    mask: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not all(math.isfinite(edge) for edge in self.box):
            raise ValueError(f'region "{self.name}" must be of finite numbers, got {self.box}')
        if left >= right:
            raise ValueError(
                f'region "{self.name}" must be wider than 0, got left {left:g} and right {right:g}'
            )
        if top >= bottom:
            raise ValueError(
                f'region "{self.name}" must be higher than 0, got top {top:g} and bottom {bottom:g}'
            )


def token_grid(height: int, width: int, tokens: int) -> Grid:
    """Return the rows and columns of a layer with ``tokens`` tokens.

    Args:
        height: Height of the latent or the picture.
        width: Width of the latent or the picture.
        tokens: Number of tokens of the layer. Each level halves both sides, rounding up.

    Raises:
        ValueError: No level has that many tokens.
    """
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(
            f"a {width} x {height} latent must halve to {tokens} tokens at some level, "
            f"got {columns} x {rows}; regions need layers whose tokens are the picture's"
        )
    return rows, columns


def cells(box: Box, grid: Grid, rule: CellRule = "centre") -> Cells:
    """Return the cells of a box.

    The paper's rule shrinks the box to whole cells and may leave none. Pixel positions must be
    divided by the size before this function multiplies by the number of cells, because rounding
    decides to which side a cell on the border belongs.

    Args:
        box: Rectangle in fractions of the picture; parts outside the picture are ignored.
        grid: Rows and columns.
        rule: One of ``CELL_RULES``.

    Note:
        By default a cell belongs to the box that contains its centre, unlike in the paper, so that
        neighbouring boxes leave no cell out and a box keeps one cell at the coarsest level.
    """
    if rule not in CELL_RULES:
        raise ValueError(f'rule must be "centre" or "paper", got "{rule}"')
    on_axis = _whole_cells if rule == "paper" else _centred_cells
    top, bottom = on_axis(box.top, box.bottom, grid[0])
    left, right = on_axis(box.left, box.right, grid[1])
    return Cells(top, left, bottom, right)


def _whole_cells(low: float, high: float, count: int) -> tuple[int, int]:
    return math.ceil(max(low, 0.0) * count), math.floor(min(high, 1.0) * count)


def _centred_cells(low: float, high: float, count: int) -> tuple[int, int]:
    if min(high, 1.0) <= max(low, 0.0):
        return 0, 0
    first = math.ceil(low * count - 0.5 - TIE)
    last = math.ceil(high * count - 0.5 - TIE)
    if first >= last:
        first = min(math.floor((low + high) / 2 * count), math.ceil(high * count) - 1)
        last = first + 1
    # A box that reaches into the picture by less than half a cell has no cells there.
    first, last = max(first, 0), min(last, count)
    return (first, last) if first < last else (0, 0)


def region_mask(region: Region, grid: Grid, *, rule: CellRule = "centre") -> Tensor:
    """Return the region's mask on the grid, ``(rows, columns)`` in 0..1, fp32 on the CPU.

    A feather or a mask gives values between 0 and 1. Under the rule ``centre`` a region that is
    smaller than a cell, but not empty, gets one full cell.
    """
    if region.mask is not None:
        return _averaged_mask(region.mask, grid, keep=rule == "centre")
    held = cells(region.box, grid, rule)
    mask = torch.zeros(grid)
    if region.feather <= 0:
        mask[held.top : held.bottom, held.left : held.right] = 1.0
        return mask
    reach = region.feather * min(grid)  # in cells
    down = _soft_cells(region.box.top, region.box.bottom, grid[0], reach)
    across = _soft_cells(region.box.left, region.box.right, grid[1], reach)
    mask = (down[:, None] * across).float()
    # A feather below one cell softens nothing at this level, so a faint mask means a small region.
    if rule == "centre" and reach < 1 and held.bottom and held.right and float(mask.max()) < 0.5:
        mask[(held.top + held.bottom) // 2, (held.left + held.right) // 2] = 1.0
    return mask


def _soft_cells(low: float, high: float, count: int, reach: float) -> Tensor:
    """Return a box smoothed along one axis; values of neighbouring boxes sum to 1 at every cell.

    The picture's border, at 0 and at 1, is not smoothed.
    """
    centres = torch.arange(count, dtype=torch.float64) + 0.5
    begun = (0.5 + (centres - low * count) / reach).clamp(0, 1) if low != 0 else 1.0
    ended = (0.5 + (centres - high * count) / reach).clamp(0, 1) if high != 1 else 0.0
    return torch.ones(count, dtype=torch.float64) * begun - ended


def _averaged_mask(mask: Tensor, grid: Grid, *, keep: bool) -> Tensor:
    whole = mask.detach().float().cpu().clamp(0, 1)
    found = F.adaptive_avg_pool2d(whole[None, None], grid)[0, 0]
    peak, largest = float(found.max()), float(whole.max())
    if keep and 0 < peak < largest / 2:
        found.view(-1)[found.argmax()] = largest
    return found


def token_masks(regions: Sequence[Region], grid: Grid, *, rule: CellRule = "centre") -> Tensor:
    """Return every region's mask over the tokens of a grid, ``(region, token)``, row by row."""
    masks = [region_mask(region, grid, rule=rule).flatten() for region in regions]
    return torch.stack(masks) if masks else torch.zeros(0, grid[0] * grid[1])


def covered_regions(regions: Sequence[Region], grid: Grid) -> list[tuple[int, tuple[int, ...]]]:
    """Return each region that later ones cover completely, and those regions, all as indices."""
    masks = token_masks(regions, grid)
    found = []
    for i, mask in enumerate(masks):
        later = tuple(j for j in range(i + 1, len(masks)) if bool((mask * masks[j]).any()))
        if later and bool((masks[list(later)].amax(0) >= mask).all()):
            found.append((i, later))
    return found


def softened(mask: Tensor, feather: float) -> Tensor:
    """Return a mask ``(h, w)`` with edges softened by the feather, except at the picture's border.

    Args:
        mask: ``(h, w)`` in 0..1.
        feather: Width of the soft edge, as a fraction of the shorter side; a width below one pixel
            changes nothing.
    """
    reach = round(feather * min(mask.shape) / 2)
    if reach < 1:
        return mask
    padded = F.pad(mask[None, None], (reach,) * 4, mode="replicate")
    across = F.avg_pool2d(padded, (1, 2 * reach + 1), stride=1)
    return F.avg_pool2d(across, (2 * reach + 1, 1), stride=1)[0, 0]


def within_area(region: Region, area: Box, shape: Grid) -> Region | None:
    """Return the region relative to a part of the picture, or ``None`` if it lies outside the part.

    Args:
        region: Region of the whole picture.
        area: The part, in fractions of the picture.
        shape: Height and width of the whole picture or latent, which the feather refers to.
    """
    wide, high = area.right - area.left, area.bottom - area.top
    box = region.box
    reach = region.feather * min(shape) / 2  # width of the soft edge outside the box, in cells
    left, right = _faded(box.left, box.right, reach / shape[1])
    top, bottom = _faded(box.top, box.bottom, reach / shape[0])
    if region.mask is None and (
        min(right, area.right) <= max(left, area.left)
        or min(bottom, area.bottom) <= max(top, area.top)
    ):
        return None
    feather = region.feather * min(shape) / min(shape[0] * high, shape[1] * wide)
    left, right = _seen(box.left, box.right, area.left, wide)
    top, bottom = _seen(box.top, box.bottom, area.top, high)
    mask = region.mask
    if mask is not None:
        rows, columns = mask.shape
        first, before = int(area.top * rows + TIE), int(area.left * columns + TIE)
        last = max(first + 1, round(area.bottom * rows))
        mask = mask[first:last, before : max(before + 1, round(area.right * columns))]
    return replace(region, box=Box(left, top, right, bottom), feather=feather, mask=mask)


def _faded(low: float, high: float, reach: float) -> tuple[float, float]:
    """Return both edges moved outwards by the soft edge, except at the picture's border."""
    return (low - reach if low > 0 else low), (high + reach if high < 1 else high)


def _seen(low: float, high: float, start: float, size: float) -> tuple[float, float]:
    """Return both edges in fractions of the area; only the picture's border gives exactly 0 or 1.

    A picture border outside the area is moved beyond the reach of any feather.
    """
    first, last = (low - start) / size, (high - start) / size
    if first == 0 and low > 0:
        first = -TIE
    if last == 1 and high < 1:
        last = 1 + TIE
    first -= _BEYOND if low == 0 and first < 0 else 0.0
    last += _BEYOND if high == 1 and last > 1 else 0.0
    return first, last


def strength_map(
    regions: Sequence[Region],
    strengths: Sequence[float],
    grid: Grid,
    *,
    outside: float = 1.0,
    rule: CellRule = "centre",
) -> Tensor:
    """Return a strength for every cell, ``grid`` in fp32; later regions overwrite earlier ones.

    Args:
        regions: Regions from the bottom to the top; soft edges blend with what lies below.
        strengths: One strength for each region.
        grid: Rows and columns of a residual's level.
        outside: Strength outside all regions.
        rule: One of ``CELL_RULES``.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3 with the released adapter weights.
    """
    if len(strengths) != len(regions):
        raise ValueError(
            f"there must be a strength for each region, got {len(strengths)} for {len(regions)}"
        )
    found = torch.full(grid, float(outside))
    for region, strength in zip(regions, strengths, strict=True):
        mask = region_mask(region, grid, rule=rule)
        found = found * (1.0 - mask) + strength * mask
    return found
