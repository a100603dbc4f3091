"""LoRAs that act in regions: all of them one gated adapter, whose ranks each have their tokens.

The factors of a layer stand side by side, so that a layer costs one low-rank product however many
regions there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....lora_ops import LowRank
from ....lora_ops.keys import NATIVE_PREFIX
from ....training.families.family import RegionLayers, matches
from ....training.gates import Gate, GatedAdapters, Layer, RowGates, Site
from ...bridge.node_output import warn_on_node
from ...lora.layers import LoraLayers, lora_layers
from ..layout.places import Grid, Places
from .networks import regional_network
from .prompts import RegionPrompt

ADAPTER = "pastiche_regions"
AREA, OFF = "by area", "not at all"
TOKENLESS = (AREA, OFF)
"""What LoRAs do in layers without tokens, such as those of the noise level."""

_IMAGE, _TEXT, _JOINT, _NONE = "image", "text", "text and image", "no tokens"


@dataclass(frozen=True)
class _Layer:
    """A layer that LoRAs of regions change.

    Args:
        kind: Which tokens it sees.
        image: Whether the terms act on image tokens; off where keys and values are isolated.
        ranks: Region and rank of each LoRA here, in the order of the factors.
    """

    kind: str
    image: bool
    ranks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Part:
    """What one region's LoRA changes of a layer; tensors are the file's own.

    Args:
        region: Its number.
        factors: Of the LoRA.
        strength: Of the region's prompt.
        rows: Of ``up``; None for all.
    """

    region: int
    factors: LowRank
    strength: float
    rows: tuple[int, int] | None

    def scaled_up(self) -> Tensor:
        """Return ``up`` with the scale and the strength in it, fp32."""
        up = self.factors.up if self.rows is None else self.factors.up[slice(*self.rows)]
        return up.float() * (self.factors.scale * self.strength)


class _SideBySide:
    """An adapter whose ranks are those of all regions, put together when a layer is first met.

    Args:
        parts: By layer.
    """

    def __init__(self, parts: Mapping[str, Sequence[_Part]]):
        self._parts = parts
        self._placed: dict[tuple[str, torch.device, torch.dtype], LowRank] = {}

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank:
        """Return a layer's factors beside a tensor, each LoRA's scale in its ``up``; kept."""
        place = (site, like.device, like.dtype)
        if place not in self._placed:
            parts = self._parts[site]
            self._placed[place] = LowRank(
                torch.cat([part.factors.down.to(like) for part in parts]),
                torch.cat([part.scaled_up().to(like) for part in parts], dim=1),
            )
        return self._placed[place]


@dataclass
class RegionalLoras:
    """The LoRAs of all regions on one model.

    Args:
        sites: Layers by name.
        layers: What is known of each.
        parts: What each region's LoRAs change of them.
        without_tokens: One of ``TOKENLESS``.
    """

    sites: Mapping[str, Site]
    layers: Mapping[str, _Layer]
    parts: Mapping[str, Sequence[_Part]]
    without_tokens: str
    gates: GatedAdapters = field(init=False)

    def __post_init__(self) -> None:
        """Make the gated adapter."""
        self.gates = GatedAdapters(self.sites, {ADAPTER: _SideBySide(self.parts)})
        self._shares: dict[tuple[Places, tuple[int, ...]], RegionShares] = {}

    def rows(self, places: Places, lengths: tuple[int, ...]) -> RowGates:
        """Return the gates of a row, which are the same object for rows that are alike.

        Args:
            places: Where the regions lie in it.
            lengths: Tokens of the texts in the layers that read them, the global one's first.
        """
        if not self.sites or places.empty:
            return {}
        key = (places, lengths)
        if key not in self._shares:
            self._shares[key] = RegionShares(self, places, lengths)
        return {ADAPTER: Gate(token_weights=self._shares[key])}

    @contextmanager
    def on_text_of(self, region: int) -> Iterator[None]:
        """Let one region's LoRAs act on all tokens that are projected in the block."""
        if not self.sites:
            yield
            return
        with self.gates.gated([{ADAPTER: Gate(token_weights=_OneRegion(self, region))}]):
            yield

    def has_tokenless(self) -> bool:
        """Whether a LoRA changes a layer without tokens."""
        return any(layer.kind == _NONE for layer in self.layers.values())


def regional_loras(
    model: ModelPatcher,
    loras: Sequence[Sequence[tuple[LoraLayers, float]]],
    isolate: bool,
    without_tokens: str,
) -> RegionalLoras:
    """Return the LoRAs of regions as they act in a model.

    Args:
        model: Any MODEL that regions work on.
        loras: What the LoRAs of each region change, with their strengths.
        isolate: Whether the LoRAs leave keys and values of image tokens as they are.
        without_tokens: One of ``TOKENLESS``.

    Raises:
        ValueError: Regions don't work on the model.
    """
    _, patterns = regional_network(model)
    sites: dict[str, Site] = {}
    found: dict[str, list[_Part]] = {}
    kinds: dict[str, tuple[str, bool]] = {}
    for region, own in enumerate(loras):
        for lora, strength in own:
            for name, layer in lora.layers.items():
                for part, kind, image in _parts(layer, isolate, patterns):
                    title = f"{name}{part or ''}"
                    sites[title] = (layer if part is None else _slice_of(layer, part)).on(
                        model.model
                    )
                    kinds[title] = (kind, image)
                    found.setdefault(title, []).append(
                        _Part(region, lora.factors[name], strength, part)
                    )
    layers = {
        name: _Layer(*kinds[name], tuple((one.region, one.factors.rank) for one in here))
        for name, here in found.items()
    }
    return RegionalLoras(sites, layers, found, without_tokens)


def region_lora_layers(model: ModelPatcher, prompt: RegionPrompt) -> list[tuple[LoraLayers, float]]:
    """Return what a region's LoRAs change of a model, with their strengths.

    Layers that the model does not have are left out with a warning.

    Raises:
        ValueError: A LoRA does not fit the model; its region is named.
    """
    found = []
    for lora, strength in prompt.loras:
        try:
            layers = lora_layers(model, lora)
        except ValueError as error:
            raise ValueError(f'region "{prompt.region}": {error}') from error
        if layers.unmatched:
            warn_on_node(
                f'{len(layers.unmatched)} layers of the LoRA of region "{prompt.region}" are not '
                f"in this model and are left out (first: {layers.unmatched[0][:80]!r})"
            )
        found.append((layers, strength))
    return found


@dataclass(eq=False)
class RegionShares:
    """How much each token of a row gets of each region's LoRAs.

    Args:
        loras: Of all regions.
        places: Where the regions lie.
        lengths: Tokens of the texts, the global one's first.
    """

    loras: RegionalLoras
    places: Places
    lengths: tuple[int, ...]
    _kept: dict[tuple, Tensor | None] = field(default_factory=dict, init=False)

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return the shares at a layer, ``(token, rank)`` or as its output's form asks."""
        layer = self.loras.layers[site]
        form = tuple(output.shape[2:]) if output.ndim == 4 else tuple(output.shape[1:-1])
        key = (layer, form, output.ndim, output.device, output.dtype)
        if key not in self._kept:
            found = self._made(layer, form, output.ndim == 4)
            self._kept[key] = None if found is None else found.to(output)
        return self._kept[key]

    def _made(self, layer: _Layer, form: tuple[int, ...], convolution: bool) -> Tensor | None:
        if layer.kind == _NONE:
            if self.loras.without_tokens == OFF:
                return None
            shares = _per_rank(layer, self.places.areas()[:, None])[0]
            return shares[:, None, None] if convolution else shares
        if layer.kind == _TEXT:
            return _or_none(self._text(layer, form[0]))
        if not layer.image and layer.kind == _IMAGE:
            return None
        if convolution:
            return _per_rank(layer, self.places.pulls(form)).T.unflatten(1, form)
        if layer.kind == _IMAGE:
            return self._image(layer, *self.places.grid_of(form[0]))
        text = sum(self.lengths)
        image = self._image(layer, *self.places.grid_of(form[0] - text))
        return torch.cat([self._text(layer, text), image if layer.image else image * 0.0])

    def _image(self, layer: _Layer, grid: Grid, frames: int) -> Tensor:
        return _per_rank(layer, self.places.pulls(grid).repeat(1, frames))

    def _text(self, layer: _Layer, tokens: int) -> Tensor:
        """Return 1 where a region's ranks meet its own text."""
        shares = torch.zeros(len(self.lengths) - 1, tokens)
        begin = self.lengths[0]
        for region, length in enumerate(self.lengths[1:]):
            shares[region, begin : begin + length] = 1.0
            begin += length
        return _per_rank(layer, shares)


@dataclass(frozen=True, eq=False)
class _OneRegion:
    """The shares of a call that projects one region's text and nothing else."""

    loras: RegionalLoras
    region: int

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return 1 for the region's ranks and 0 for all others, ``(rank,)``."""
        parts = [
            torch.full((rank,), float(region == self.region))
            for region, rank in self.loras.layers[site].ranks
        ]
        return _or_none(torch.cat(parts).to(output))


def warn_of_tokenless(loras: RegionalLoras) -> None:
    """Say once what happens in layers that no region can be told apart in."""
    if loras.has_tokenless():
        what = (
            "by the region's share of the picture"
            if loras.without_tokens == AREA
            else "not at all there"
        )
        warn_on_node(
            "a region's LoRA changes layers without tokens, such as those of the noise level; it "
            f"acts {what}"
        )


def _parts(
    layer: Layer, isolate: bool, patterns: RegionLayers
) -> list[tuple[tuple[int, int] | None, str, bool]]:
    """Return the parts of a layer's output that are gated alike: rows, kind, and image or not.

    Args:
        layer: The layer, or the slice of it that a LoRA changes.
        isolate: Whether keys and values of image tokens stay as they are.
        patterns: Layers of the model's family.
    """
    path = layer.path.removeprefix(NATIVE_PREFIX)
    kind = _kind(path, patterns)
    if not isolate:
        return [(None, kind, True)]
    if matches(patterns.image_keys_values, path):
        return [(None, kind, False)]
    if not matches(patterns.fused_image, path):
        return [(None, kind, True)]
    width = layer.shape[1]
    begin = layer.start or 0
    end = begin + layer.shape[0]
    found = []
    for low, high, image in ((0, width, True), (width, 3 * width, False), (3 * width, end, True)):
        first, last = max(begin, low), min(end, high)
        if first < last:
            found.append(((first - begin, last - begin), kind, image))
    return found


def _kind(path: str, patterns: RegionLayers) -> str:
    if matches(patterns.without_tokens, path):
        return _NONE
    if matches(patterns.text_and_image, path):
        return _JOINT
    return _TEXT if matches(patterns.text, path) else _IMAGE


def _slice_of(layer: Layer, rows: tuple[int, int]) -> Layer:
    start = (layer.start or 0) + rows[0]
    return replace(layer, shape=(rows[1] - rows[0], *layer.shape[1:]), start=start)


def _per_rank(layer: _Layer, shares: Tensor) -> Tensor:
    """Return every region's shares ``(region, token)`` for each of its ranks, ``(token, rank)``."""
    return torch.cat([shares[region, :, None].expand(-1, rank) for region, rank in layer.ranks], 1)


def _or_none(shares: Tensor) -> Tensor | None:
    return shares if bool(shares.any()) else None
