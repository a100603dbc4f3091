"""A ControlNet or T2I-Adapter whose strength differs from region to region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ....lora_ops import Region, strength_map, token_grid
from ....lora_ops.regions import CellRule
from ...bridge.node_output import warn_on_node
from ..layout.places import Grid, require_aspect
from ..layout.sets import RULES, hidden_regions

_LARGEST_STRENGTH = 10.0
_GRID = (64, 64)


@dataclass(frozen=True, eq=False)
class StrengthMap:
    """A strength for every place of a picture.

    Args:
        regions: In the order in which they are laid down.
        strengths: One for each.
        outside: Where there is no region.
        rule: How boxes become cells.
    """

    regions: tuple[Region, ...]
    strengths: tuple[float, ...]
    outside: float
    rule: CellRule


class LaidMap:
    """A map of strengths as one ControlNet lays it on its residuals; each grid is made once.

    Args:
        strengths: Of the picture.
    """

    def __init__(self, strengths: StrengthMap):
        self.strengths = strengths
        self._laid: dict[tuple, Tensor] = {}

    def weighted(self, residual: Tensor, shape: Grid) -> Tensor:
        """Return a residual times the strengths.

        Args:
            residual: ``(row, channel, h, w)``, or ``(row, token, channel)`` of a transformer.
            shape: Height and width of the latent.

        Raises:
            ValueError: A region's mask has other proportions than the latent.
        """
        spatial = residual.ndim >= 4
        grid = tuple(residual.shape[-2:]) if spatial else token_grid(*shape, residual.shape[1])
        key = (shape, grid, spatial, residual.device, residual.dtype)
        if key not in self._laid:
            self._laid[key] = self._on(grid, shape, spatial).to(residual)
        return residual * self._laid[key]

    def clear(self) -> None:
        """Forget what was laid down, at the end of a run."""
        self._laid.clear()

    def _on(self, grid: Grid, shape: Grid, spatial: bool) -> Tensor:
        of = self.strengths
        require_aspect(of.regions, shape)
        found = strength_map(of.regions, of.strengths, grid, outside=of.outside, rule=of.rule)
        return found if spatial else found.flatten()[:, None]


def weighted_control(
    control: ControlBase,
    regions: Sequence[Region],
    strengths: str,
    inside: float,
    outside: float,
    cells: str,
) -> ControlBase:
    """Return a copy of a ControlNet that acts with a strength for each region.

    Args:
        control: As a loader gives it, before any Apply ControlNet.
        regions: Later ones overwrite earlier ones.
        strengths: Lines of a region's name and a number; a region that is missing has ``inside``.
        inside: In regions that are not named.
        outside: Where there is no region.
        cells: One of ``RULES``.

    Raises:
        ValueError: A line is no name and number, a name is of no region, or the ControlNet has
            strengths already.

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
        RULES[cells],
    )
    for below, above in hidden_regions(regions, _GRID):
        warn_on_node(
            f'the strength of region "{below}" has no effect, it lies wholly under {above}'
        )
    copied = control.copy()
    copied.__class__ = _weighted_class(type(control))
    copied.pastiche_strengths = LaidMap(found)
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
def _weighted_class(kind: type[ControlBase]) -> type[ControlBase]:
    """Return a class of ControlNets like ``kind`` whose own residuals are weighted."""

    class RegionallyWeighted(kind):
        pastiche_strengths: LaidMap

        def get_control(
            self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, options: Any
        ) -> Any:
            self._latent_shape = tuple(x_noisy.shape[-2:])
            return super().get_control(x_noisy, t, cond, batched_number, options)

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
                # A tensor that stands in several places stays one: its strength is applied once.
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

        def copy(self) -> ControlBase:
            copied = super().copy()
            copied.__class__ = type(self)
            copied.pastiche_strengths = LaidMap(self.pastiche_strengths.strengths)
            return copied

        def cleanup(self) -> None:
            super().cleanup()
            self.pastiche_strengths.clear()

    return RegionallyWeighted
