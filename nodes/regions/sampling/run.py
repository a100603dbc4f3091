"""Apply regions during one sampling run.

Three of ComfyUI's wrappers are used, outermost first: PREPARE_SAMPLING mixes the pooled vectors,
SAMPLER_SAMPLE chooses the region prompts of every encoded entry, and APPLY_MODEL applies texts,
region maps and gates to the rows of a call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.samplers import CFGGuider
from torch import Tensor

from ....lora_ops import Region, pooled_mean
from ....lora_ops.regions import CellRule
from ...bridge.families import layers_by_path
from ...bridge.sampling import POSITIVE, ModelSampling, Wrapped, single_gpu_model, wrap_model_call
from ...bridge.sampling import STYLE_KEY as STYLES
from ...lora.layers import LoraLayers
from ..layout.region_maps import Area, Grid, RegionMaps
from .call import RegionalBackend, RegionalCall, RowGroup
from .cross import CrossAttentionBackend
from .joint import JointAttentionBackend
from .loras import RegionalLoras, regional_loras
from .networks import regional_network
from .prompts import RegionConditioning
from .texts import EntryPrompts, Preprocessing, RegionTexts, pooled_of, prompts_for
from .unet import UNetBackend

KEY = "pastiche_regions"

# Key of the index ``(row, 1)`` of the rows' entry in a condition's ``model_conds`` and in the
# model's arguments.
ENTRY_INDEX = "pastiche_region_role"

# Sources of the pooled vector, in models that have one.
MEAN, GLOBAL = "mean by area", "global prompt's"
POOLED = (MEAN, GLOBAL)


@dataclass(frozen=True, eq=False)
class RegionalPlan:
    """The regions of a MODEL with their prompts, LoRAs and settings.

    Args:
        regions: Regions in order.
        prompts: One prompt for each region.
        loras: For each region, the layers of its LoRAs and their strengths.
        rule: Rule by which boxes become cells.
        pooled: One of ``POOLED``.
        isolate: Whether LoRAs leave keys and values of image tokens unchanged.
        without_tokens: One of ``TOKENLESS``, for the LoRAs' layers without tokens.
    """

    regions: tuple[Region, ...]
    prompts: tuple[RegionConditioning, ...]
    loras: Sequence[Sequence[tuple[LoraLayers, float]]]
    rule: CellRule
    pooled: str
    isolate: bool
    without_tokens: str

    def loras_on(self, model: ModelPatcher) -> RegionalLoras:
        """Return the regions' LoRAs on a model."""
        return regional_loras(model, self.loras, self.isolate, self.without_tokens)


def regional_backend(
    model: ModelPatcher, loras: RegionalLoras, cache_keys: bool
) -> RegionalBackend:
    """Return the backend for a model's network.

    Args:
        model: Any MODEL.
        loras: LoRAs of the regions.
        cache_keys: Whether keys may be cached, because the weights are the same in every step.

    Raises:
        ValueError: The model does not support regions.
    """
    layout, layers = regional_network(model)
    network = model.model.diffusion_model
    if layout == "unet":
        return UNetBackend(network, loras, cache_keys)
    if layout == "joint":
        return JointAttentionBackend(network.patch_size, layers.text_positions)
    return CrossAttentionBackend(layers_by_path(network, layers.cross_attention))


class RegionalRun:
    """One sampling run: its hooks, the region prompts of its entries and cached region maps.

    Args:
        guider: The sampler's guider, before ``outer_sample``.
        plan: Regions of the MODEL.

    Raises:
        ValueError: The model runs on several GPUs, or a LoRA does not fit.
    """

    def __init__(self, guider: CFGGuider, plan: RegionalPlan):
        patcher = single_gpu_model(guider, "regions")
        self._guider = guider
        self._plan = plan
        self._loras = plan.loras_on(patcher)
        hooked = any("hooks" in entry for entries in guider.conds.values() for entry in entries)
        # A style's LoRA may change the projections, so its rows have other keys for the same text.
        styled = bool(patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, STYLES))
        self._backend = regional_backend(patcher, self._loras, cache_keys=not (hooked or styled))
        model_sampling = cast(ModelSampling, patcher.get_model_object("model_sampling"))
        to_sigma = model_sampling.percent_to_sigma
        self._windows = [
            (float(to_sigma(one.start_percent)), float(to_sigma(one.end_percent)))
            for one in plan.regions
        ]
        self._timed = any(r.start_percent > 0 or r.end_percent < 1 for r in plan.regions)
        self._whole: Grid = (0, 0)
        self._dimensions = 2
        self._entries: list[EntryPrompts] = []
        self._warned = False
        self._maps: dict[tuple[tuple[bool, ...], Area | None, int], RegionMaps] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach hooks and wrappers to the guider inside the block.

        The guider's model_options are a copy for this run, so the wrappers need no removal.
        """
        options = self._guider.model_options
        add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self.prepare, options, True)
        add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sample, options, True)
        wrap_model_call(options, KEY, self.apply_model)
        with self._loras.gates.attached():
            yield

    def prepare(
        self,
        executor: Wrapped,
        model: ModelPatcher,
        noise_shape: Sequence[int],
        conds: dict[str, list[dict[str, Any]]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Mix the pooled vectors of all prompts, weighted by the areas of their regions.

        ``conds`` are copies of the sampler for this run, so they can be modified.
        """
        self._whole = (noise_shape[-2], noise_shape[-1])
        self._dimensions = len(noise_shape) - 2
        if len(noise_shape) < 4:
            raise ValueError(
                "regions must lie on a picture's or a video's latent, got one of shape "
                f"{tuple(noise_shape)}; connect an ordinary latent"
            )
        if self._plan.pooled == MEAN:
            every = tuple(True for _ in self._plan.regions)
            mixing = self._maps_of(every, None).mixing(self._whole)
            vectors = (
                [pooled_of(one.positive) for one in self._plan.prompts],
                [pooled_of(one.negative) for one in self._plan.prompts],
            )
            for name, entries in conds.items():
                pooled = prompts_for(name, *vectors)
                for entry in entries:
                    own = entry.get("pooled_output")
                    if own is not None and any(vector is not None for vector in pooled):
                        parts = [None if vector is None else vector.to(own) for vector in pooled]
                        entry["pooled_output"] = pooled_mean(own, parts, mixing)
        return executor(model, noise_shape, conds, *args, **kwargs)

    def sample(self, executor: Wrapped, guider: CFGGuider, *args: Any, **kwargs: Any) -> Any:
        """Choose the region prompts of every entry, which the sampler has encoded by now."""
        self._entries = []
        texts = RegionTexts.of(self._plan.prompts, self._preprocessing(guider))
        for name, entries in guider.conds.items():
            for entry in entries:
                conds = entry["model_conds"]
                prompts = texts.for_entry(name, entry, self._dimensions)
                tokens = conds["c_crossattn"].cond.shape[1]
                index = prompts.index_cond(len(self._entries), tokens, self._backend.repeats)
                self._entries.append(prompts)
                entry["model_conds"] = {**conds, ENTRY_INDEX: index}
        return executor(guider, *args, **kwargs)

    def apply_model(
        self,
        executor: Wrapped,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Apply regional prompts and LoRAs to one model call."""
        indices, options = kwargs.pop(ENTRY_INDEX, None), transformer_options or {}
        if indices is None:
            self._warn_unreached()
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        call = self._call(x, t, [self._entries[i] for i in indices.flatten().tolist()], options)
        if all(group.maps.empty for group in call.groups):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        text = cast(Tensor, c_crossattn)  # all models that support regions have one
        context, options, lengths = self._backend.prepare(call, text.to(x), options)
        gates = {
            row: self._loras.gates_of(group.maps, lengths)
            for group in call.groups
            for row in group.indices
        }
        rows = [gates[row] for row in range(len(call.entries))]
        with self._loras.gates.gated(rows), self._backend.attached():
            return executor(x, t, c_concat, context, control, options, **kwargs)

    def _warn_unreached(self) -> None:
        if not self._warned:
            self._warned = True
            logging.warning(
                "Pastiche: regions do not reach a prompt that a node predicts on its own, such as "
                "the negative of Dual Model Guider; it holds in the whole picture."
            )

    def _preprocessing(self, guider: CFGGuider) -> Preprocessing:
        """Return the model's preprocessing of a context: none in UNets, padding in Flux.2."""
        if isinstance(self._backend, UNetBackend):
            return lambda context: context
        model = guider.inner_model
        sides = (1,) * (self._dimensions - 2) + self._whole
        noise = torch.zeros(1, model.latent_format.latent_channels, *sides)

        def preprocess(context: Tensor) -> Tensor:
            made = model.extra_conds(
                cross_attn=context,
                pooled_output=None,
                noise=noise,
                device=noise.device,
                prompt_type=POSITIVE,
            )
            return made["c_crossattn"].cond

        return preprocess

    def _call(
        self, x: Tensor, t: Tensor, entries: Sequence[EntryPrompts], options: dict[str, Any]
    ) -> RegionalCall:
        active = tuple(True for _ in self._windows)
        if self._timed:
            sigma = float(t.flatten()[0])
            active = tuple(last <= sigma <= first for first, last in self._windows)
        groups: dict[tuple[RegionMaps, bool], list[int]] = {}
        for row, entry in enumerate(entries):
            frames = x.shape[2] if x.ndim > 4 else 1
            maps = self._maps_of(active, self._clipped(entry.area), frames)
            if tuple(x.shape[-2:]) != maps.shape:
                raise RuntimeError(
                    "regions must see the whole picture in one call, got a part of "
                    f"{x.shape[-1]} x {x.shape[-2]} of {maps.shape[1]} x {maps.shape[0]}; "
                    "remove the node that tiles the picture"
                )
            groups.setdefault((maps, entry.regional), []).append(row)
        lists = len(options.get("cond_or_uncond", ())) or 1
        return RegionalCall(
            tuple(entries),
            tuple(RowGroup(tuple(rows), *key) for key, rows in groups.items()),
            max(1, len(entries) // lists),
        )

    def _clipped(self, area: Area | None) -> Area | None:
        """Return an area clipped to the latent, as ComfyUI clips it."""
        if area is None:
            return None
        height, width, top, left = area
        return min(self._whole[0] - top, height), min(self._whole[1] - left, width), top, left

    def _maps_of(self, active: tuple[bool, ...], area: Area | None, frames: int = 1) -> RegionMaps:
        key = (active, area, frames)
        if key not in self._maps:
            self._maps[key] = RegionMaps(
                self._plan.regions, active, self._whole, area, self._plan.rule, frames
            )
        return self._maps[key]
