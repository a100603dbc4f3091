"""Make regions from the editor's text, from rows and columns, and from masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ....lora_ops import Box, Region, parse_layout, parse_regions
from ....lora_ops.regions import CellRule, covered_regions, softened
from ...bridge.node_output import warn_on_node

# Colours of regions for which none is given.
PALETTE = ("#e6553c", "#3c82e6", "#41ab5d", "#f2b134", "#9b5de5", "#21b5b5", "#e0559b", "#8d6e4a")

WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_COARSEST = 64  # pixels of a cell in the coarsest layers of the usual models
_ASPECT = 1.05  # largest ratio of two aspect ratios that count as equal, since latents are rounded

# The node's names of the rules by which a box becomes cells of a layer.
KEEPS_A_CELL, WHOLE_CELLS = "at least one cell", "whole cells (paper)"
CELL_RULES: dict[str, CellRule] = {KEEPS_A_CELL: "centre", WHOLE_CELLS: "paper"}


@dataclass(frozen=True)
class RegionDefaults:
    """Settings of regions that are made from masks or colours.

    Args:
        feather: Width of the soft edge, as a fraction of the shorter side.
        weight: Weight relative to other regions where they overlap.
        blend: Fraction of the global prompt inside the region.
        start_percent: Fraction of the run at which the regions begin to act.
        end_percent: Fraction of the run at which the regions stop acting.
    """

    feather: float = 0.0
    weight: float = 1.0
    blend: float = 0.0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if self.end_percent <= self.start_percent:
            raise ValueError(
                "end_percent must be above start_percent, got "
                f"{self.end_percent:g} after {self.start_percent:g}; raise it"
            )

    def of(self, region: Region) -> Region:
        """Return the region with these settings."""
        return replace(region, **vars(self))


def region_set(text: str, layout: str) -> tuple[Region, ...]:
    """Return the regions of the editor's text, or of the layout if there is one.

    Args:
        text: JSON text of the editor.
        layout: Rows and columns such as ``1,2,1 / 1``; empty for the boxes of ``text``.

    Raises:
        ValueError: The text or the layout has a mistake; its position and the reason are named.
    """
    return with_colours(parse_layout(layout) if layout.strip() else parse_regions(text))


def picture_size(width: int, height: int, background: Tensor | None) -> tuple[int, int]:
    """Return width and height of the picture; those of a background take precedence.

    Args:
        width: Width from the node's input.
        height: Height from the node's input.
        background: ``(batch, height, width, 3)`` or None.
    """
    return (width, height) if background is None else (background.shape[2], background.shape[1])


def split_names(names: str) -> list[str]:
    """Return names that are separated by commas or line breaks."""
    return [name.strip() for name in names.replace("\n", ",").split(",") if name.strip()]


def regions_from_masks(
    masks: Mapping[str, Tensor], names: str, defaults: RegionDefaults, before: Sequence[Region] = ()
) -> tuple[Region, ...]:
    """Return a region for each mask.

    Args:
        masks: ``(batch, height, width)`` or ``(height, width)`` by socket, white in the region. A
            batch gives one region for each of its masks.
        names: One name per mask, separated by commas; empty for numbered names.
        defaults: Settings of the new regions.
        before: Regions that come first.

    Raises:
        ValueError: A mask is black, two masks have different aspect ratios, or the names don't fit.
    """
    found = [one for mask in masks.values() for one in mask.reshape(-1, *mask.shape[-2:])]
    if not found:
        raise ValueError("there must be at least one mask, got none; connect one for each region")
    titles = split_names(names) or _numbered(len(found), before)
    if len(titles) != len(found):
        raise ValueError(
            f"there must be one name for each of the {len(found)} masks, got {len(titles)}; "
            "write them with commas between, or none at all"
        )
    first = found[0]
    for title, mask in zip(titles, found, strict=True):
        if not same_aspect(first.shape, mask.shape):
            raise ValueError(
                f'the masks must be of one picture, got "{titles[0]}" of {_size(first)} and '
                f'"{title}" of {_size(mask)}; crop or resize one'
            )
    added = [
        region_from_mask(title, mask, defaults) for title, mask in zip(titles, found, strict=True)
    ]
    return join_regions(before, added)


def region_from_mask(name: str, mask: Tensor, defaults: RegionDefaults) -> Region:
    """Return the region of a mask, whose edge is softened by the feather.

    Args:
        name: Name of the region.
        mask: ``(height, width)``, white in the region.
        defaults: Settings of the region.

    Raises:
        ValueError: The mask is black, or has values that are not finite.
    """
    whole = mask.detach().float().cpu().clamp(0, 1)
    if not bool(mask.isfinite().all()):
        raise ValueError(f'the mask of region "{name}" must be of finite numbers; make it anew')
    if not bool(whole.any()):
        raise ValueError(
            f'the mask of region "{name}" must be white somewhere, got one that is black all '
            "over; paint where the region is, or leave it out"
        )
    return defaults.of(Region(name, _bounds(whole), mask=softened(whole, defaults.feather)))


def join_regions(before: Sequence[Region], added: Sequence[Region]) -> tuple[Region, ...]:
    """Return the regions of both with colours, after warnings about regions that may not work.

    Args:
        before: Regions of any kind.
        added: Regions from masks of one picture, at least one.

    Raises:
        ValueError: A name occurs twice.
    """
    names = [region.name for region in before]
    for region in added:
        if region.name in names:
            raise ValueError(
                f'the regions must have each name once, got "{region.name}" twice; rename one'
            )
        names.append(region.name)
    if (mask := added[0].mask) is not None:
        warn_of_oddities((*before, *added), mask.shape[1], mask.shape[0])
    return with_colours((*before, *added))


def with_colours(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return the regions; those without a colour get one of the palette."""
    return tuple(
        region if region.colour else replace(region, colour=PALETTE[i % len(PALETTE)])
        for i, region in enumerate(regions)
    )


def same_aspect(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two sizes (height and width) have equal aspect ratios, except for rounding."""
    ratio = (one[0] / one[1]) / (other[0] / other[1])
    return 1 / _ASPECT <= ratio <= _ASPECT


def warn_of_oddities(regions: Sequence[Region], width: int, height: int) -> None:
    """Warn of regions that are smaller than a cell or are covered completely by later regions.

    Args:
        regions: Regions in order.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
    """
    rows, columns = max(1, height // _COARSEST), max(1, width // _COARSEST)
    for region in regions:
        across, down = region.box.right - region.box.left, region.box.bottom - region.box.top
        if min(across * columns, down * rows) < 0.5:
            warn_on_node(
                f'region "{region.name}" is {across * width:.0f} x {down * height:.0f} of '
                f"{width} x {height} pixels, less than half a cell of the coarsest layers; make it "
                f"{_COARSEST} pixels wide and high or more"
            )
    for below, above in hidden_regions(regions, (rows * 8, columns * 8)):
        warn_on_node(
            f'region "{below}" lies wholly under {above}: where they overlap each is heard by its '
            "weight, and of control strengths the last one counts"
        )


def hidden_regions(regions: Sequence[Region], grid: tuple[int, int]) -> list[tuple[str, str]]:
    """Return each region that later ones cover completely, and their names as a text."""
    return [
        (regions[below].name, ", ".join(f'"{regions[i].name}"' for i in above))
        for below, above in covered_regions(regions, grid)
    ]


def _numbered(count: int, before: Sequence[Region]) -> list[str]:
    """Return new numbered names; the numbers continue after the regions before."""
    taken = {region.name for region in before}
    numbers = itertools.count(len(before) + 1)
    free = (f"region {number}" for number in numbers if f"region {number}" not in taken)
    return list(itertools.islice(free, count))


def _bounds(mask: Tensor) -> Box:
    """Return the box around all pixels that are not black, in fractions of the picture."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    height, width = mask.shape
    return Box(
        float(columns[0]) / width,
        float(rows[0]) / height,
        (float(columns[-1]) + 1) / width,
        (float(rows[-1]) + 1) / height,
    )


def _size(mask: Tensor) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]}"
