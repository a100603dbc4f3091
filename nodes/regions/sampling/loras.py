"""Apply the LoRAs of regions as one gated adapter whose ranks have weights per token.

The factors of all regions' LoRAs are concatenated, so a layer costs one low-rank product however
many regions there are.
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
from ..layout.region_maps import Grid, RegionMaps
from .networks import regional_network
from .prompts import RegionConditioning

ADAPTER = "pastiche_regions"

# Options for LoRAs in layers without tokens, such as those of the timestep embedding.
AREA, OFF = "by area", "not at all"
TOKENLESS = (AREA, OFF)

# Kinds of layers by the tokens in their input.
_IMAGE, _TEXT, _JOINT, _NONE = "image", "text", "text and image", "no tokens"


@dataclass(frozen=True)
class _Layer:
    """A layer that the LoRAs of regions change.

    Args:
        kind: Kind of the tokens in its input.
        image: Whether the LoRAs act on image tokens; off if keys and values are isolated.
        ranks: Region and rank of each LoRA, in the order of the factors.
    """

    kind: str
    image: bool
    ranks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Part:
    """One region's LoRA at a layer, with the unchanged tensors of the file.

    Args:
        region: Number of the region.
        factors: Factors of the LoRA.
        strength: Strength of the LoRA in the region.
        rows: Range of the rows of ``up`` that are used; None for all rows.
    """

    region: int
    factors: LowRank
    strength: float
    rows: tuple[int, int] | None

    def scaled_up(self) -> Tensor:
        """Return ``up`` multiplied by scale and strength, fp32."""
        up = self.factors.up if self.rows is None else self.factors.up[slice(*self.rows)]
        return up.float() * (self.factors.scale * self.strength)


class _ConcatenatedLoras:
    """An adapter with the ranks of all regions, concatenated at the first use of each layer.

    Args:
        parts: LoRAs of the regions by layer.
    """

    def __init__(self, parts: Mapping[str, Sequence[_Part]]):
        self._parts = parts
        self._placed: dict[tuple[str, torch.device, torch.dtype], LowRank] = {}

    def factors(self, site: str, frozen: frozenset[str], like: Tensor) -> LowRank:
        """Return a layer's factors on a tensor's device, with scales in ``up``; they are cached."""
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
        sites: Sites of the changed layers by name.
        layers: Description of each changed layer.
        parts: LoRAs of the regions at each layer.
        without_tokens: One of ``TOKENLESS``.
    """

    sites: Mapping[str, Site]
    layers: Mapping[str, _Layer]
    parts: Mapping[str, Sequence[_Part]]
    without_tokens: str
    gates: GatedAdapters = field(init=False)

    def __post_init__(self) -> None:
        """Create the gated adapter."""
        self.gates = GatedAdapters(self.sites, {ADAPTER: _ConcatenatedLoras(self.parts)})
        self._weights: dict[tuple[RegionMaps, tuple[int, ...]], RegionTokenWeights] = {}

    def gates_of(self, maps: RegionMaps, lengths: tuple[int, ...]) -> RowGates:
        """Return the gates of a row; equal rows get the same object of token weights.

        Args:
            maps: Masks of the regions in the row.
            lengths: Number of tokens of each text in the layers that read them, the global
                prompt's first.
        """
        if not self.sites or maps.empty:
            return {}
        key = (maps, lengths)
        if key not in self._weights:
            self._weights[key] = RegionTokenWeights(self, maps, lengths)
        return {ADAPTER: Gate(token_weights=self._weights[key])}

    @contextmanager
    def on_text_of(self, region: int) -> Iterator[None]:
        """Switch one region's LoRAs on for all tokens that are projected inside the block."""
        if not self.sites:
            yield
            return
        with self.gates.gated([{ADAPTER: Gate(token_weights=_SingleRegion(self, region))}]):
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
    """Return the LoRAs of regions on a model.

    Args:
        model: A MODEL that supports regions.
        loras: For each region, the layers of its LoRAs and their strengths.
        isolate: Whether the LoRAs leave keys and values of image tokens unchanged.
        without_tokens: One of ``TOKENLESS``.

    Raises:
        ValueError: The model does not support regions.
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


def region_lora_layers(
    model: ModelPatcher, prompt: RegionConditioning
) -> list[tuple[LoraLayers, float]]:
    """Return the layers of a region's LoRAs in a model, with the LoRAs' strengths.

    Layers that the model does not have are left out with a warning.

    Raises:
        ValueError: A LoRA does not fit the model; the message names the region.
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


# Layer, shape of its tokens, dimensions, device and dtype of its output.
_WeightsKey = tuple[_Layer, tuple[int, ...], int, torch.device, torch.dtype]


@dataclass(eq=False)
class RegionTokenWeights:
    """The weights of all regions' LoRAs at each token of a row.

    Args:
        loras: LoRAs of all regions.
        maps: Masks of the regions.
        lengths: Number of tokens of each text, the global prompt's first.
    """

    loras: RegionalLoras
    maps: RegionMaps
    lengths: tuple[int, ...]
    _kept: dict[_WeightsKey, Tensor | None] = field(default_factory=dict, init=False)

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return the weights at a layer, ``(token, rank)`` or in the form of its output."""
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
            weights = _per_rank(layer, self.maps.areas()[:, None])[0]
            return weights[:, None, None] if convolution else weights
        if layer.kind == _TEXT:
            return _or_none(self._text(layer, form[0]))
        if not layer.image and layer.kind == _IMAGE:
            return None
        if convolution:
            rows, columns = form
            return _per_rank(layer, self.maps.token_weights((rows, columns))).T.unflatten(1, form)
        if layer.kind == _IMAGE:
            return self._image(layer, *self.maps.grid_of(form[0]))
        text = sum(self.lengths)
        image = self._image(layer, *self.maps.grid_of(form[0] - text))
        return torch.cat([self._text(layer, text), image if layer.image else image * 0.0])

    def _image(self, layer: _Layer, grid: Grid, frames: int) -> Tensor:
        return _per_rank(layer, self.maps.token_weights(grid).repeat(1, frames))

    def _text(self, layer: _Layer, tokens: int) -> Tensor:
        """Return 1 for a region's ranks at the tokens of its own text, 0 elsewhere."""
        weights = torch.zeros(len(self.lengths) - 1, tokens)
        begin = self.lengths[0]
        for region, length in enumerate(self.lengths[1:]):
            weights[region, begin : begin + length] = 1.0
            begin += length
        return _per_rank(layer, weights)


@dataclass(frozen=True, eq=False)
class _SingleRegion:
    """The token weights of a call that projects only the text of one region."""

    loras: RegionalLoras
    region: int

    def at(self, site: str, output: Tensor) -> Tensor | None:
        """Return 1 for the region's ranks and 0 for all other ranks, ``(rank,)``."""
        parts = [
            torch.full((rank,), float(region == self.region))
            for region, rank in self.loras.layers[site].ranks
        ]
        return _or_none(torch.cat(parts).to(output))


def warn_of_tokenless(loras: RegionalLoras) -> None:
    """Warn if LoRAs change layers without tokens, in which regions cannot be distinguished."""
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
    """Return the parts of a layer's output that need separate gates: rows, kind, and image or not.

    Args:
        layer: The layer, or the slice of it that a LoRA changes.
        isolate: Whether keys and values of image tokens stay unchanged.
        patterns: Patterns of the layers in the model's family.
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


def _per_rank(layer: _Layer, weights: Tensor) -> Tensor:
    """Return the regions' weights ``(region, token)`` for each rank, ``(token, rank)``."""
    return torch.cat([weights[region, :, None].expand(-1, rank) for region, rank in layer.ranks], 1)


def _or_none(weights: Tensor) -> Tensor | None:
    return weights if bool(weights.any()) else None
