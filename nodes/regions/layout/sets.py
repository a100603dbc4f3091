"""Regions out of what nodes are given: the editor's text, rows and columns, and masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ....lora_ops import Box, Region, parse_layout, parse_regions
from ....lora_ops.regions import CellRule, covered_regions, softened
from ...bridge.node_output import warn_on_node

PALETTE = ("#e6553c", "#3c82e6", "#41ab5d", "#f2b134", "#9b5de5", "#21b5b5", "#e0559b", "#8d6e4a")
"""Colours of regions that have none of their own."""

WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_COARSEST = 64
"""Pixels of a cell at the coarsest level of the usual models."""
_ASPECT = 1.05
"""How far two pictures' proportions may differ and still be of one shape; latents are rounded."""

KEEPS_A_CELL, WHOLE_CELLS = "at least one cell", "whole cells (paper)"
RULES: dict[str, CellRule] = {KEEPS_A_CELL: "centre", WHOLE_CELLS: "paper"}
"""How the node names the rules by which a box becomes cells of a layer."""


@dataclass(frozen=True)
class Manner:
    """How regions that come without settings of their own act.

    Args:
        feather: Width of the soft edge, as a share of the shorter side.
        weight: Against others where they overlap.
        blend: Share of the global prompt inside.
        start_percent: From where on in the run they act.
        end_percent: Up to where.
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
    """Return the regions of the editor's text, or of rows and columns where those are given.

    Args:
        text: JSON of the editor.
        layout: Rows and columns such as ``1,2,1 / 1``; empty for the boxes of ``text``.

    Raises:
        ValueError: One of them has a mistake; its place and the reason are named.
    """
    return coloured(parse_layout(layout) if layout.strip() else parse_regions(text))


def picture_size(width: int, height: int, background: Tensor | None) -> tuple[int, int]:
    """Return width and height of the picture, the background's where there is one.

    Args:
        width: As typed.
        height: As typed.
        background: ``(batch, height, width, 3)`` or None.
    """
    return (width, height) if background is None else (background.shape[2], background.shape[1])


def listed(names: str) -> list[str]:
    """Return names that stand between commas or on lines of their own."""
    return [name.strip() for name in names.replace("\n", ",").split(",") if name.strip()]


def regions_from_masks(
    masks: Mapping[str, Tensor], names: str, manner: Manner, before: Sequence[Region] = ()
) -> tuple[Region, ...]:
    """Return a region for each mask, white where it is.

    Args:
        masks: ``(batch, height, width)`` or ``(height, width)`` by socket; a batch is as many
            regions.
        names: One for each, parted by commas; empty to number them.
        manner: How they act.
        before: Regions that come first.

    Raises:
        ValueError: A mask is black all over, two are of another shape, or the names don't fit.
    """
    found = [one for mask in masks.values() for one in mask.reshape(-1, *mask.shape[-2:])]
    if not found:
        raise ValueError("there must be at least one mask, got none; connect one for each region")
    titles = listed(names) or _numbered(len(found), before)
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
    return joined_regions(
        before, [masked(*pair, manner) for pair in zip(titles, found, strict=True)]
    )


def masked(name: str, mask: Tensor, manner: Manner) -> Region:
    """Return a region of a mask, its edge softened by the feather.

    Args:
        name: Of the region.
        mask: ``(height, width)``, white where it is.
        manner: How it acts.

    Raises:
        ValueError: The mask is black all over, or not of finite numbers.
    """
    whole = mask.detach().float().cpu().clamp(0, 1)
    if not bool(mask.isfinite().all()):
        raise ValueError(f'the mask of region "{name}" must be of finite numbers; make it anew')
    if not bool(whole.any()):
        raise ValueError(
            f'the mask of region "{name}" must be white somewhere, got one that is black all '
            "over; paint where the region is, or leave it out"
        )
    return manner.of(Region(name, _bounds(whole), mask=softened(whole, manner.feather)))


def joined_regions(before: Sequence[Region], added: Sequence[Region]) -> tuple[Region, ...]:
    """Return both, each with a colour; what is odd of them on the masks' picture is said.

    Args:
        before: Of any kind.
        added: Of masks of one picture, at least one.

    Raises:
        ValueError: A name is there twice.
    """
    names = [region.name for region in before]
    for region in added:
        if region.name in names:
            raise ValueError(
                f'the regions must have each name once, got "{region.name}" twice; rename one'
            )
        names.append(region.name)
    height, width = added[0].mask.shape
    warn_of_oddities((*before, *added), width, height)
    return coloured((*before, *added))


def coloured(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return the regions, those without a colour in one of the palette's."""
    return tuple(
        region if region.colour else replace(region, colour=PALETTE[i % len(PALETTE)])
        for i, region in enumerate(regions)
    )


def same_aspect(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two sizes, height and width, are of one shape but for rounding."""
    ratio = (one[0] / one[1]) / (other[0] / other[1])
    return 1 / _ASPECT <= ratio <= _ASPECT


def warn_of_oddities(regions: Sequence[Region], width: int, height: int) -> None:
    """Say which regions are smaller than a cell of the picture or lie wholly under another.

    Args:
        regions: In order.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
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
    """Return each region that later ones cover wholly, and the names of those, in words."""
    return [
        (regions[below].name, ", ".join(f'"{regions[i].name}"' for i in above))
        for below, above in covered_regions(regions, grid)
    ]


def _numbered(count: int, before: Sequence[Region]) -> list[str]:
    """Return as many names, numbered on from the regions before and none of theirs."""
    taken = {region.name for region in before}
    numbers = itertools.count(len(before) + 1)
    free = (f"region {number}" for number in numbers if f"region {number}" not in taken)
    return list(itertools.islice(free, count))


def _bounds(mask: Tensor) -> Box:
    """Return the box around all that is not black, in shares of the picture."""
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
