"""Where regions lie in the layers of one model call: their masks on every grid, kept for a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....lora_ops import (
    Mixing,
    Region,
    area_weights,
    mix_regions,
    token_grid,
    token_masks,
    within_area,
)
from ....lora_ops.regions import Box, CellRule
from .sets import same_aspect

Grid = tuple[int, int]
Area = tuple[int, int, int, int]
"""Height, width, top and left of a part of the latent."""


class Places:
    """The regions as one part of the picture sees them, at one moment of the run.

    Args:
        regions: Of the whole picture.
        active: Which of them act now; the others' tokens are the global prompt's.
        whole: Height and width of the whole latent.
        area: The part that is predicted; None for all of it.
        rule: How boxes become cells.
        frames: Of a video's latent, one behind the other in its layers' tokens.

    Raises:
        ValueError: A region's mask has other proportions than the latent.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        active: Sequence[bool],
        whole: Grid,
        area: Area | None,
        rule: CellRule,
        frames: int = 1,
    ):
        require_aspect(regions, whole)
        self.shape = whole if area is None else area[:2]
        self._rule: CellRule = rule
        self._frames = frames
        self._weights = [region.weight for region in regions]
        self._blends = [region.blend for region in regions]
        self._seen = [
            _seen(region, whole, area) if acts else None
            for region, acts in zip(regions, active, strict=True)
        ]
        self._masks: dict[Grid, Tensor] = {}
        self._mixed: dict[tuple[Grid, int, frozenset[int]], Mixing] = {}
        self._placed: dict[tuple, Mixing] = {}

    @property
    def empty(self) -> bool:
        """Whether no region acts here now."""
        return all(region is None or region.weight == 0 for region in self._seen)

    def masks(self, grid: Grid) -> Tensor:
        """Return each region's mask over a grid, ``(region, token)``; zeros where it is not."""
        if grid not in self._masks:
            here = token_masks([r for r in self._seen if r is not None], grid, rule=self._rule)
            rows = iter(here)
            nothing = torch.zeros(grid[0] * grid[1])
            self._masks[grid] = torch.stack(
                [nothing if region is None else next(rows) for region in self._seen]
            )
        return self._masks[grid]

    def grid_of(self, tokens: int) -> tuple[Grid, int]:
        """Return the grid of a layer and its frames.

        Raises:
            RuntimeError: Its tokens are not the picture's.
        """
        try:
            if tokens % self._frames:
                raise ValueError(
                    f"{tokens} tokens must be as many in each of {self._frames} frames"
                )
            return token_grid(*self.shape, tokens // self._frames), self._frames
        except ValueError as error:
            raise RuntimeError(
                f"regions must know every token's place, but {error}; remove the node that merges "
                "or tiles tokens"
            ) from error

    def mixed(self, grid: Grid, frames: int = 1, silent: frozenset[int] = frozenset()) -> Mixing:
        """Return who is heard at each token of a grid, frame by frame.

        Args:
            grid: Rows and columns.
            frames: How often the grid is repeated.
            silent: Regions whose share is the global prompt's.
        """
        key = (grid, frames, silent)
        if key not in self._mixed:
            masks = self.masks(grid).repeat(1, frames)
            blends = [1.0 if i in silent else blend for i, blend in enumerate(self._blends)]
            self._mixed[key] = mix_regions(masks, weights=self._weights, blends=blends)
        return self._mixed[key]

    def heard(self, grid: Grid, frames: int, like: Tensor) -> Mixing:
        """Return ``mixed`` beside a tensor."""
        key = (grid, frames, like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = self.mixed(grid, frames).to(like)
        return self._placed[key]

    def pulls(self, grid: Grid) -> Tensor:
        """Return each region's share of every token whatever its blend, ``(region, token)``."""
        return mix_regions(self.masks(grid), weights=self._weights).coefficients[1:]

    def areas(self) -> Tensor:
        """Return each region's share of the part, ``(region,)``, whatever its blend."""
        return area_weights(mix_regions(self.masks(self.shape), weights=self._weights))[1:]


def _seen(region: Region, whole: Grid, area: Area | None) -> Region | None:
    if area is None:
        return region
    height, width, top, left = area
    rows, columns = whole
    part = Box(left / columns, top / rows, (left + width) / columns, (top + height) / rows)
    return within_area(region, part, whole)


def require_aspect(regions: Sequence[Region], whole: Grid) -> None:
    """Raise a ValueError that names the region whose mask is not of the picture's proportions."""
    for region in regions:
        if region.mask is not None and not same_aspect(region.mask.shape, whole):
            height, width = region.mask.shape
            raise ValueError(
                f'the mask of region "{region.name}" must have the proportions of the picture, got '
                f"{width} x {height} for a latent of {whole[1]} x {whole[0]}; crop or resize it"
            )
