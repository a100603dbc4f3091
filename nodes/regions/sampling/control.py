"""Give a ControlNet or T2I-Adapter a separate strength in each region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from comfy.controlnet import ControlNet, T2IAdapter
from torch import Tensor

from ....lora_ops import Region, strength_map, token_grid
from ....lora_ops.regions import CellRule
from ...bridge.node_output import warn_on_node
from ..layout.region_maps import Grid, require_aspect
from ..layout.sets import CELL_RULES, hidden_regions

_LARGEST_STRENGTH = 10.0
_GRID = (64, 64)  # grid on which covered regions are found

# Size of the latent, grid of the residual, whether it is spatial, device and dtype.
_WeightsKey = tuple[Grid, Grid, bool, torch.device, torch.dtype]


@dataclass(frozen=True, eq=False)
class StrengthMap:
    """A strength for every point of a picture.

    Args:
        regions: Regions; later ones overwrite earlier ones.
        strengths: Strength in each region.
        outside: Strength outside all regions.
        rule: Rule by which boxes become cells.
    """

    regions: tuple[Region, ...]
    strengths: tuple[float, ...]
    outside: float
    rule: CellRule


class ResidualWeights:
    """The weights of one ControlNet's residuals, cached for each grid.

    Args:
        strengths: Strengths in the picture.
    """

    def __init__(self, strengths: StrengthMap):
        self.strengths = strengths
        self._on_grid: dict[_WeightsKey, Tensor] = {}

    def weighted(self, residual: Tensor, shape: Grid) -> Tensor:
        """Return a residual multiplied by the strengths.

        Args:
            residual: ``(row, channel, h, w)``, or ``(row, token, channel)`` of a transformer.
            shape: Height and width of the latent.

        Raises:
            ValueError: A region's mask has another aspect ratio than the latent.
        """
        spatial = residual.ndim >= 4
        if spatial:
            grid = (residual.shape[-2], residual.shape[-1])
        else:
            grid = token_grid(*shape, residual.shape[1])
        key = (shape, grid, spatial, residual.device, residual.dtype)
        if key not in self._on_grid:
            self._on_grid[key] = self._weights(grid, shape, spatial).to(residual)
        return residual * self._on_grid[key]

    def clear(self) -> None:
        """Clear the cache at the end of a run."""
        self._on_grid.clear()

    def _weights(self, grid: Grid, shape: Grid, spatial: bool) -> Tensor:
        regions, strengths = self.strengths.regions, self.strengths.strengths
        require_aspect(regions, shape)
        found = strength_map(
            regions, strengths, grid, outside=self.strengths.outside, rule=self.strengths.rule
        )
        return found if spatial else found.flatten()[:, None]


def weighted_control(
    control: ControlNet | T2IAdapter,
    regions: Sequence[Region],
    strengths: str,
    inside: float,
    outside: float,
    cells: str,
) -> ControlNet | T2IAdapter:
    """Return a copy of a ControlNet that has a separate strength in each region.

    Args:
        control: ControlNet from a loader, before any Apply ControlNet.
        regions: Regions; later ones overwrite earlier ones.
        strengths: Lines of a region's name and a number.
        inside: Strength in regions without a line.
        outside: Strength outside all regions.
        cells: One of ``CELL_RULES``.

    Raises:
        ValueError: A line is not a name and a number, a name is not that of a region, or the
            ControlNet has strengths already.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.3 with the released adapter weights.
    """
    if hasattr(control, "pastiche_strengths"):
        raise ValueError(
            "a ControlNet must have its strengths from one Regional Control Weight, got one that "
            "has some already; connect the ControlNet before it"
        )
    named = _named(strengths, [region.name for region in regions])
    found = StrengthMap(
        tuple(regions),
        tuple(named.get(region.name, inside) for region in regions),
        outside,
        CELL_RULES[cells],
    )
    for below, above in hidden_regions(regions, _GRID):
        warn_on_node(
            f'the strength of region "{below}" has no effect, it lies wholly under {above}'
        )
    copied: Any = control.copy()  # whose class is replaced by a subclass
    copied.__class__ = _weighted_class(cast(type[ControlNet], type(control)))
    copied.pastiche_strengths = ResidualWeights(found)
    return copied


def _named(text: str, names: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, _, value = line.strip().rpartition(" ")
        name = name.strip().rstrip(":=").strip()
        try:
            strength = float(value)
        except ValueError:
            strength = -1.0
        if not name or not 0 <= strength <= _LARGEST_STRENGTH:
            raise ValueError(
                f"strengths, line {number}: it must be a region's name and a number from 0 to "
                f'{_LARGEST_STRENGTH:g}, such as "cat 0.8", got {line.strip()[:80]!r}; correct it'
            )
        if name in found:
            raise ValueError(
                f'strengths, line {number}: a region must be named once, got "{name}" twice; '
                "leave one of the lines out"
            )
        if name not in names:
            there = ", ".join(f'"{one}"' for one in names) or "none"
            raise ValueError(
                f"strengths, line {number}: it must name a region that is there, got "
                f'"{name}" where there is {there}; correct the name'
            )
        found[name] = strength
    return found


@cache
def _weighted_class(kind: type[ControlNet]) -> type[ControlNet]:
    """Return a subclass that weights the residuals.

    Args:
        kind: Class of the ControlNet, or a class with the same methods, such as ``T2IAdapter``.
    """

    class RegionallyWeighted(kind):
        pastiche_strengths: ResidualWeights

        def get_control(
            self,
            x_noisy: Tensor,
            t: Tensor,
            cond: Any,
            batched_number: int,
            transformer_options: Any,
        ) -> Any:
            self._latent_shape = (x_noisy.shape[-2], x_noisy.shape[-1])
            return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

        def control_merge(
            self,
            control: Mapping[str, Sequence[Tensor | None]],
            control_prev: Any,
            output_dtype: torch.dtype | None,
        ) -> Any:
            pools = self.global_average_pooling
            shared: dict[int, Tensor] = {}

            def weighted(residual: Tensor | None) -> Tensor | None:
                if residual is None:
                    return None
                # A tensor that occurs several times stays one tensor, weighted once.
                if id(residual) not in shared:
                    whole = residual
                    if pools:
                        whole = residual.mean((2, 3), keepdim=True).expand_as(residual)
                    shared[id(residual)] = self.pastiche_strengths.weighted(
                        whole, self._latent_shape
                    )
                return shared[id(residual)]

            ours = {
                key: [weighted(residual) for residual in residuals]
                for key, residuals in control.items()
            }
            self.global_average_pooling = False
            try:
                return super().control_merge(ours, control_prev, output_dtype)
            finally:
                self.global_average_pooling = pools

        def copy(self) -> Any:
            copied: Any = super().copy()
            copied.__class__ = type(self)
            copied.pastiche_strengths = ResidualWeights(self.pastiche_strengths.strengths)
            return copied

        def cleanup(self) -> None:
            super().cleanup()
            self.pastiche_strengths.clear()

    return RegionallyWeighted
