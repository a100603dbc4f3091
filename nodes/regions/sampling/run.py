"""One sampling run with regions.

ComfyUI's wrappers carry it, outermost first: PREPARE_SAMPLING mixes the pooled vectors,
SAMPLER_SAMPLE notes on every encoded entry what its rows hear, APPLY_MODEL turns the rows of a
call into texts, places and gates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.samplers import CFGGuider
from torch import Tensor

from ....lora_ops import Region, pooled_mean
from ....lora_ops.regions import CellRule
from ...bridge.families import layers_by_path
from ...bridge.sampling import POSITIVE, single_gpu_model, wrap_model_call
from ...bridge.sampling import STYLE_KEY as STYLES
from ...lora.layers import LoraLayers
from ..layout.places import Area, Grid, Places
from .call import Call, Listening, Rows
from .cross import CrossListening
from .joint import JointListening
from .loras import RegionalLoras, regional_loras
from .networks import regional_network
from .prompts import RegionPrompt
from .texts import Reading, Role, SaidTexts, pooled_of, spoken
from .unet import UNetListening

KEY = "pastiche_regions"
ROLE = "pastiche_region_role"
"""Among a condition's ``model_conds`` and the model's arguments: ``(row, 1)``, a role's number."""

MEAN, GLOBAL = "mean by area", "global prompt's"
POOLED = (MEAN, GLOBAL)
"""Of which prompts the pooled vector is, in models that have one."""

Wrapped = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class RegionalPlan:
    """All that a MODEL with regions carries.

    Args:
        regions: In order.
        prompts: One for each.
        loras: What the LoRAs of each change of the model, with their strengths.
        rule: How boxes become cells.
        pooled: One of ``POOLED``.
        isolate: Whether LoRAs leave keys and values of image tokens as they are.
        without_tokens: What LoRAs do in layers without tokens.
    """

    regions: tuple[Region, ...]
    prompts: tuple[RegionPrompt, ...]
    loras: Sequence[Sequence[tuple[LoraLayers, float]]]
    rule: CellRule
    pooled: str
    isolate: bool
    without_tokens: str

    def loras_on(self, model: ModelPatcher) -> RegionalLoras:
        """Return the regions' LoRAs as they act in a model."""
        return regional_loras(model, self.loras, self.isolate, self.without_tokens)


def listening_on(model: ModelPatcher, loras: RegionalLoras, keeps: bool) -> Listening:
    """Return how regions' texts reach a model's attention.

    Args:
        model: Any MODEL.
        loras: Of the regions.
        keeps: Whether its weights are the same in every step.

    Raises:
        ValueError: It is a model that regions don't work on.
    """
    layout, layers = regional_network(model)
    network = model.model.diffusion_model
    if layout == "unet":
        return UNetListening(network, loras, keeps)
    if layout == "joint":
        return JointListening(network.patch_size, layers.text_positions)
    return CrossListening(layers_by_path(network, layers.cross_attention))


class RegionalRun:
    """One sampling run: its hooks, the roles of its entries, the call it is in.

    Args:
        guider: The sampler's guider, before ``outer_sample``.
        plan: Of the MODEL.

    Raises:
        ValueError: The model runs on several GPUs, or a LoRA does not fit.
    """

    def __init__(self, guider: CFGGuider, plan: RegionalPlan):
        patcher = single_gpu_model(guider, "regions")
        self._guider = guider
        self._plan = plan
        self._loras = plan.loras_on(patcher)
        hooked = any("hooks" in entry for entries in guider.conds.values() for entry in entries)
        # A style's LoRA changes the keys of its own rows alone, whatever their text.
        styled = bool(patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, STYLES))
        self._listening = listening_on(patcher, self._loras, keeps=not (hooked or styled))
        to_sigma = patcher.get_model_object("model_sampling").percent_to_sigma
        self._windows = [
            (float(to_sigma(one.start_percent)), float(to_sigma(one.end_percent)))
            for one in plan.regions
        ]
        self._timed = any(r.start_percent > 0 or r.end_percent < 1 for r in plan.regions)
        self._whole: Grid = (0, 0)
        self._dimensions = 2
        self._roles: list[Role] = []
        self._said = False
        self._places: dict[tuple[tuple[bool, ...], Area | None, int], Places] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold hooks and wrappers while the guider samples.

        The guider's model_options are this run's own copy: the wrappers end with them.
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
        """Mix the pooled vectors of all prompts by their regions' shares of the picture.

        ``conds`` are the sampler's own copies and end with the run.
        """
        self._whole, self._dimensions = tuple(noise_shape[-2:]), len(noise_shape) - 2
        if len(noise_shape) < 4:
            raise ValueError(
                "regions must lie on a picture's or a video's latent, got one of shape "
                f"{tuple(noise_shape)}; connect an ordinary latent"
            )
        if self._plan.pooled == MEAN:
            mixed = self._placed(tuple(True for _ in self._plan.regions), None).mixed(self._whole)
            vectors = (
                [pooled_of(one.positive) for one in self._plan.prompts],
                [pooled_of(one.negative) for one in self._plan.prompts],
            )
            for name, entries in conds.items():
                said = spoken(name, *vectors)
                for entry in entries:
                    own = entry.get("pooled_output")
                    if own is not None and any(vector is not None for vector in said):
                        parts = [None if vector is None else vector.to(own) for vector in said]
                        entry["pooled_output"] = pooled_mean(own, parts, mixed)
        return executor(model, noise_shape, conds, *args, **kwargs)

    def sample(self, executor: Wrapped, guider: CFGGuider, *args: Any, **kwargs: Any) -> Any:
        """Give every entry its role; the sampler has encoded them and made all it needs."""
        self._roles = []
        texts = SaidTexts.of(self._plan.prompts, self._reading(guider))
        for name, entries in guider.conds.items():
            for entry in entries:
                role, own = texts.role(name, entry, self._dimensions), entry["model_conds"]
                tokens = own["c_crossattn"].cond.shape[1]
                number = role.number(len(self._roles), tokens, self._listening.repeats)
                self._roles.append(role)
                entry["model_conds"] = {**own, ROLE: number}
        return executor(guider, *args, **kwargs)

    def apply_model(
        self,
        executor: Wrapped,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Let the rows of a call hear their regions, through texts, places and gates."""
        numbers, options = kwargs.pop(ROLE, None), transformer_options or {}
        if numbers is None:
            self._say_unreached()
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        call = self._call(x, t, [self._roles[i] for i in numbers.flatten().tolist()], options)
        if all(rows.places.empty for rows in call.groups):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        context, options, lengths = self._listening.prepare(call, c_crossattn.to(x), options)
        gates = {
            number: self._loras.rows(rows.places, lengths)
            for rows in call.groups
            for number in rows.numbers
        }
        rows = [gates[number] for number in range(len(call.roles))]
        with self._loras.gates.gated(rows), self._listening.attached():
            return executor(x, t, c_concat, context, control, options, **kwargs)

    def _say_unreached(self) -> None:
        if not self._said:
            self._said = True
            logging.warning(
                "Pastiche: regions do not reach a prompt that a node predicts on its own, such as "
                "the negative of Dual Model Guider; it holds in the whole picture."
            )

    def _reading(self, guider: CFGGuider) -> Reading:
        """Return what the model makes of a context: UNets take it as it is, Flux.2 fills it up."""
        if isinstance(self._listening, UNetListening):
            return lambda context: context
        model = guider.inner_model
        sides = (1,) * (self._dimensions - 2) + self._whole
        noise = torch.zeros(1, model.latent_format.latent_channels, *sides)

        def read(context: Tensor) -> Tensor:
            made = model.extra_conds(
                cross_attn=context,
                pooled_output=None,
                noise=noise,
                device=noise.device,
                prompt_type=POSITIVE,
            )
            return made["c_crossattn"].cond

        return read

    def _call(self, x: Tensor, t: Tensor, roles: Sequence[Role], options: dict[str, Any]) -> Call:
        active = tuple(True for _ in self._windows)
        if self._timed:
            sigma = float(t.flatten()[0])
            active = tuple(last <= sigma <= first for first, last in self._windows)
        groups: dict[tuple[Places, bool], list[int]] = {}
        for number, role in enumerate(roles):
            frames = x.shape[2] if x.ndim > 4 else 1
            places = self._placed(active, self._cut(role.area), frames)
            if tuple(x.shape[-2:]) != places.shape:
                raise RuntimeError(
                    "regions must see the whole picture in one call, got a part of "
                    f"{x.shape[-1]} x {x.shape[-2]} of {places.shape[1]} x {places.shape[0]}; "
                    "remove the node that tiles the picture"
                )
            groups.setdefault((places, role.regional), []).append(number)
        entries = len(options.get("cond_or_uncond", ())) or 1
        return Call(
            tuple(roles),
            tuple(Rows(tuple(rows), *key) for key, rows in groups.items()),
            max(1, len(roles) // entries),
        )

    def _cut(self, area: Area | None) -> Area | None:
        """Return an area as ComfyUI cuts it to the latent."""
        if area is None:
            return None
        height, width, top, left = area
        return min(self._whole[0] - top, height), min(self._whole[1] - left, width), top, left

    def _placed(self, active: tuple[bool, ...], area: Area | None, frames: int = 1) -> Places:
        key = (active, area, frames)
        if key not in self._places:
            self._places[key] = Places(
                self._plan.regions, active, self._whole, area, self._plan.rule, frames
            )
        return self._places[key]
