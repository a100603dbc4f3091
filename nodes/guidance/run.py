"""One sampling run with styles.

ComfyUI's wrappers carry it, outermost first: PREDICT_NOISE asks for style predictions and adds
their terms, CALC_COND_BATCH appends the style's conditioning to the call that predicts the
positive, APPLY_MODEL turns each row's place in that call into its gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.samplers import CFGGuider
from torch import Tensor

from ...lora_ops import style_guidance
from ...training.gates import Gate, GatedAdapters
from ..bridge.conditioning import Conditioning
from ..bridge.sampling import (
    OWN_PROMPT,
    POSITIVE,
    STYLE_KEY,
    Entry,
    Wrapped,
    single_gpu_model,
    wrap_model_call,
)
from ..lora.layers import LoraLayers
from .rows import style_rows
from .window import StyleWindow


@dataclass(frozen=True)
class Style:
    """One style as its node describes it.

    Args:
        layers: What its LoRA changes of the model; on for the style's rows only.
        conditioning: Of the prompt with the style words.
        window: When it acts and how strongly.
        lora_strength: Multiplies the LoRA.
        mask: ``(batch, height, width)``, multiplies the guidance term; None for everywhere.
    """

    layers: LoraLayers
    conditioning: Conditioning
    window: StyleWindow
    lora_strength: float = 1.0
    mask: Tensor | None = None


@dataclass
class _Request:
    """The style predictions that one evaluation needs, and what they turned out to be."""

    positive: list[Entry]
    styles: dict[str, list[Entry]]  # by adapter name
    outputs: list[Tensor] | None = None  # the positive's, then each style's


@dataclass
class _Call:
    """The call that holds the style rows."""

    shown_as: int  # index of the positive's list
    adapters: dict[int, str]  # adapter name by index of the style's list
    batch: int
    forwards: int = 0


class StyleRun:
    """One sampling run: its hooks, its style conditioning, the call it is in.

    Args:
        guider: The sampler's guider, between its preparation and ``outer_sample``.
        styles: Those with a scale.

    Raises:
        ValueError: The guider has no positive prompt, the model runs on several GPUs, or the
            style prompts don't match the positive.
    """

    def __init__(self, guider: CFGGuider, styles: list[Style]):
        patcher = single_gpu_model(guider, "style guidance")
        if POSITIVE not in guider.conds:
            raise ValueError(
                "style guidance must find a prompt called positive in the guider, got "
                f"{type(guider).__name__} with {', '.join(guider.conds) or 'none'}; use KSampler, "
                "CFGGuider or BasicGuider"
            )
        self._guider = guider
        self._model_sampling = patcher.get_model_object("model_sampling")
        self._styles = {f"{STYLE_KEY}_{number}": style for number, style in enumerate(styles)}
        self._rows = {
            name: [
                {**row, OWN_PROMPT: style.mask is not None}
                for row in style_rows(guider.conds[POSITIVE], style.conditioning)
            ]
            for name, style in self._styles.items()
        }
        sites, adapters = {}, {}
        for name, style in self._styles.items():
            own_sites, adapters[name] = style.layers.on(patcher)
            sites |= own_sites
        self._gates = GatedAdapters(sites, adapters)
        self._request: _Request | None = None
        self._call: _Call | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold hooks, style conditioning and wrappers while the guider samples.

        The guider's model_options are this run's own copy: the wrappers end with them.
        """
        options = self._guider.model_options
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, STYLE_KEY, self.predict_noise, options, True)
        add_wrapper_with_key(
            WrappersMP.CALC_COND_BATCH, STYLE_KEY, self.calc_cond_batch, options, True
        )
        # Other packs' wrappers too see style rows as the positive's.
        wrap_model_call(options, STYLE_KEY, self.apply_model)
        conds = self._guider.conds
        conds.update(self._rows)
        try:
            with self._gates.attached():
                yield
        finally:
            for name in self._rows:
                conds.pop(name, None)

    def predict_noise(
        self, executor: Wrapped, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the guider's prediction and every style's term.

        The terms are added here rather than in a post-CFG function, which some guiders scale
        (nested Dual CFG), call with another prompt (Dual CFG) or not at all (Dual Model at 1).
        """
        sigma = float(timestep.flatten()[0])
        scales = {
            name: style.window.scale_at(sigma, self._model_sampling.percent_to_sigma)
            for name, style in self._styles.items()
        }
        conds = self._guider.conds
        rows = {name: conds[name] for name, scale in scales.items() if scale != 0}
        if not rows:
            return executor(x, timestep, *args, **kwargs)
        before, self._request = self._request, _Request(conds[POSITIVE], rows)
        try:
            denoised = executor(x, timestep, *args, **kwargs)
            outputs = self._request.outputs
        finally:
            self._request = before
        if outputs is None or outputs[0].shape != denoised.shape:
            raise RuntimeError(self._unguided())
        terms = [
            (output, self._masked(name, scales[name], denoised))
            for name, output in zip(rows, outputs[1:], strict=True)
        ]
        return style_guidance(denoised, outputs[0], terms)

    def calc_cond_batch(
        self, executor: Wrapped, model: Any, conds: list, x: Tensor, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        """Add the style's lists to the first call of an evaluation that holds the positive.

        Later calls with the same list, as Perturbed Attention Guidance makes, are not ours.
        """
        request = self._request
        shown_as = None
        if request is not None and request.outputs is None:
            shown_as = next((i for i, c in enumerate(conds) if c is request.positive), None)
        if shown_as is None:
            return executor(model, conds, x, *args, **kwargs)
        adapters = dict(enumerate(request.styles, start=len(conds)))
        self._call = _Call(shown_as, adapters, batch=x.shape[0])
        try:
            lists = [*conds, *request.styles.values()]
            outputs = executor(model, lists, x, *args, **kwargs)
            if not self._call.forwards:
                raise RuntimeError(self._unguided())
        finally:
            self._call = None
        # A copy: guidance patches may change what they are given in place.
        request.outputs = [outputs[shown_as].clone(), *outputs[len(conds) :]]
        return outputs[: len(conds)]

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
        """Gate the call's rows, and show style rows to the model as the positive's.

        Patches index ``(cond, uncond)`` with ``cond_or_uncond``: a third list would be unknown.
        """
        call, options = self._call, transformer_options or {}
        inputs = (x, t, c_concat, c_crossattn, control)
        if call is None:
            return executor(*inputs, options, **kwargs)
        lists = options["cond_or_uncond"]
        if x.shape[0] != len(lists) * call.batch:
            raise RuntimeError(
                "style guidance must know each row of a model call, got "
                f"{x.shape[0]} rows for {len(lists)} prompts of {call.batch}; "
                "remove the node that regroups the batch"
            )
        call.forwards += 1
        rows = [self._row_gates(call.adapters.get(i)) for i in lists for _ in range(call.batch)]
        shown = [call.shown_as if i in call.adapters else i for i in lists]
        with self._gates.gated(rows):
            return executor(*inputs, {**options, "cond_or_uncond": shown}, **kwargs)

    def _row_gates(self, adapter: str | None) -> dict[str, Gate]:
        return {adapter: Gate(self._styles[adapter].lora_strength)} if adapter else {}

    def _masked(self, name: str, scale: float, like: Tensor) -> float | Tensor:
        mask = self._styles[name].mask
        if mask is None:
            return scale
        if like.ndim < 4:
            raise ValueError(
                "a style's mask must lie on a picture's or a video's latent, got one of shape "
                f"{tuple(like.shape)}; disconnect the mask"
            )
        return scale * comfy.sampler_helpers.prepare_mask(mask, like.shape, like.device)

    def _unguided(self) -> str:
        if "context_handler" in self._guider.model_options:
            return (
                "style guidance must see all frames in one call, got context windows; "
                "remove the Context Windows node or sample fewer frames"
            )
        return (
            "style guidance must find the positive prompt in the sampler's model call, got "
            f"{type(self._guider).__name__} that predicts it another way; remove nodes that tile "
            "the picture or replace the model's calls"
        )
