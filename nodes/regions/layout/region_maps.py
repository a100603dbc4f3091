"""Rasterize regions to the token grids of a model's layers, cached for one sampling run."""

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

Grid = tuple[int, int]  # rows and columns
Area = tuple[int, int, int, int]  # height, width, top and left of a part of the latent


class RegionMaps:
    """The masks of all regions in one part of the latent at one time of the run.

    Args:
        regions: Regions of the whole picture.
        active: Whether each region acts now; otherwise its tokens use the global prompt.
        whole: Height and width of the whole latent.
        area: Part of the latent that is predicted; None for all of it.
        rule: Rule by which boxes become cells.
        frames: Number of frames of a video's latent, which are concatenated in the layers' tokens.

    Raises:
        ValueError: A region's mask has another aspect ratio than the latent.
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
        self._visible = [
            _in_area(region, whole, area) if acts else None
            for region, acts in zip(regions, active, strict=True)
        ]
        self._masks: dict[Grid, Tensor] = {}
        self._mixings: dict[tuple[Grid, int, frozenset[int]], Mixing] = {}
        self._on_device: dict[tuple[Grid, int, torch.device, torch.dtype], Mixing] = {}

    @property
    def empty(self) -> bool:
        """Whether no region acts in this part now."""
        return all(region is None or region.weight == 0 for region in self._visible)

    def masks(self, grid: Grid) -> Tensor:
        """Return each region's mask on a grid, ``(region, token)``."""
        if grid not in self._masks:
            here = token_masks([r for r in self._visible if r is not None], grid, rule=self._rule)
            rows = iter(here)
            nothing = torch.zeros(grid[0] * grid[1])
            self._masks[grid] = torch.stack(
                [nothing if region is None else next(rows) for region in self._visible]
            )
        return self._masks[grid]

    def grid_of(self, tokens: int) -> tuple[Grid, int]:
        """Return the grid of a layer with this many tokens, and its number of frames.

        Raises:
            RuntimeError: The number of tokens doesn't fit the latent.
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

    def mixing(
        self, grid: Grid, frames: int = 1, without_prompt: frozenset[int] = frozenset()
    ) -> Mixing:
        """Return the weight of each prompt at every token of a grid.

        Args:
            grid: Rows and columns.
            frames: Number of repetitions of the grid.
            without_prompt: Numbers of the regions that use the global prompt.
        """
        key = (grid, frames, without_prompt)
        if key not in self._mixings:
            masks = self.masks(grid).repeat(1, frames)
            blends = [1.0 if i in without_prompt else blend for i, blend in enumerate(self._blends)]
            self._mixings[key] = mix_regions(masks, weights=self._weights, blends=blends)
        return self._mixings[key]

    def mixing_like(self, grid: Grid, frames: int, like: Tensor) -> Mixing:
        """Return ``mixing`` on the device and in the dtype of a tensor."""
        key = (grid, frames, like.device, like.dtype)
        if key not in self._on_device:
            self._on_device[key] = self.mixing(grid, frames).to(like)
        return self._on_device[key]

    def token_weights(self, grid: Grid) -> Tensor:
        """Return each region's weight at every token, ``(region, token)``, without its blend."""
        return mix_regions(self.masks(grid), weights=self._weights).coefficients[1:]

    def areas(self) -> Tensor:
        """Return each region's fraction of the part, ``(region,)``, without its blend."""
        return area_weights(mix_regions(self.masks(self.shape), weights=self._weights))[1:]


def _in_area(region: Region, whole: Grid, area: Area | None) -> Region | None:
    if area is None:
        return region
    height, width, top, left = area
    rows, columns = whole
    part = Box(left / columns, top / rows, (left + width) / columns, (top + height) / rows)
    return within_area(region, part, whole)


def require_aspect(regions: Sequence[Region], whole: Grid) -> None:
    """Raise unless the regions' masks have the aspect ratio of the latent.

    Raises:
        ValueError: A region's mask has another aspect ratio; the region is named.
    """
    for region in regions:
        if region.mask is not None and not same_aspect(region.mask.shape, whole):
            height, width = region.mask.shape
            raise ValueError(
                f'the mask of region "{region.name}" must have the proportions of the picture, got '
                f"{width} x {height} for a latent of {whole[1]} x {whole[0]}; crop or resize it"
            )
