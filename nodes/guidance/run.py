"""Apply style guidance during one sampling run.

Three of ComfyUI's wrappers are used, outermost first: PREDICT_NOISE requests style predictions and
adds their terms, CALC_COND_BATCH appends the styles' conditioning to the call that predicts the
positive, and APPLY_MODEL switches the LoRAs on for the styles' rows of that call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

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
    ModelSampling,
    Wrapped,
    single_gpu_model,
    wrap_model_call,
)
from ..lora.layers import LoraLayers
from .rows import style_rows
from .window import StyleWindow


@dataclass(frozen=True)
class Style:
    """One style with the settings of its node.

    Args:
        layers: Layers and factors of the style's LoRA, which is on in the style's rows only.
        conditioning: Conditioning of the prompt with the style words.
        window: Schedule of the guidance scale.
        lora_strength: Multiplier of the LoRA.
        mask: ``(batch, height, width)`` factor of the guidance term; None for the whole picture.
    """

    layers: LoraLayers
    conditioning: Conditioning
    window: StyleWindow
    lora_strength: float = 1.0
    mask: Tensor | None = None


@dataclass
class _Request:
    """The style predictions that one evaluation requests, and the results."""

    positive: list[Entry]
    styles: dict[str, list[Entry]]  # by adapter name
    outputs: list[Tensor] | None = None  # the prediction for the positive, then one for each style


@dataclass
class _Call:
    """The model call that contains the style rows."""

    positive: int  # index of the positive's list
    adapters: dict[int, str]  # adapter name by index of the style's list
    batch: int
    forwards: int = 0


class StyleRun:
    """One sampling run: its hooks, its style conditioning and the current model call.

    Args:
        guider: The sampler's guider, after its preparation and before ``outer_sample``.
        styles: Styles whose scale is not 0.

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
        model_sampling = cast(ModelSampling, patcher.get_model_object("model_sampling"))
        self._percent_to_sigma = model_sampling.percent_to_sigma
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
        """Attach hooks, style conditioning and wrappers to the guider inside the block.

        The guider's model_options are a copy for this run, so the wrappers need no removal.
        """
        options = self._guider.model_options
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, STYLE_KEY, self.predict_noise, options, True)
        add_wrapper_with_key(
            WrappersMP.CALC_COND_BATCH, STYLE_KEY, self.calc_cond_batch, options, True
        )
        # Wrappers of other packs must see the style rows as rows of the positive, too.
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
        """Return the guider's prediction plus the term of every style.

        The terms are not added in a post-CFG function, because some guiders scale its result
        (nested Dual CFG), call it for another prompt (Dual CFG) or not at all (Dual Model at 1).
        """
        sigma = float(timestep.flatten()[0])
        scales = {
            name: style.window.scale_at(sigma, self._percent_to_sigma)
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
            raise RuntimeError(self._missed_call())
        terms = [
            (output, self._masked_scale(name, scales[name], denoised))
            for name, output in zip(rows, outputs[1:], strict=True)
        ]
        return style_guidance(denoised, outputs[0], terms)

    def calc_cond_batch(
        self,
        executor: Wrapped,
        model: Any,
        conds: list[list[Entry] | None],
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Add the styles' lists to the first call of an evaluation that contains the positive.

        Later calls with the same list, such as those of Perturbed Attention Guidance, are left
        unchanged.
        """
        request = self._request
        if request is None or request.outputs is not None:
            return executor(model, conds, x, *args, **kwargs)
        positive = next((i for i, cond in enumerate(conds) if cond is request.positive), None)
        if positive is None:
            return executor(model, conds, x, *args, **kwargs)
        adapters = dict(enumerate(request.styles, start=len(conds)))
        self._call = _Call(positive, adapters, batch=x.shape[0])
        try:
            lists = [*conds, *request.styles.values()]
            outputs = executor(model, lists, x, *args, **kwargs)
            if not self._call.forwards:
                raise RuntimeError(self._missed_call())
        finally:
            self._call = None
        # A copy, because guidance patches may change their inputs in place.
        request.outputs = [outputs[positive].clone(), *outputs[len(conds) :]]
        return outputs[: len(conds)]

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
        """Set the gates of the call's rows, and label style rows as rows of the positive.

        Patches index ``(cond, uncond)`` with ``cond_or_uncond`` and don't know of a third list.
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
        labels = [call.positive if i in call.adapters else i for i in lists]
        with self._gates.gated(rows):
            return executor(*inputs, {**options, "cond_or_uncond": labels}, **kwargs)

    def _row_gates(self, adapter: str | None) -> dict[str, Gate]:
        return {adapter: Gate(self._styles[adapter].lora_strength)} if adapter else {}

    def _masked_scale(self, name: str, scale: float, like: Tensor) -> float | Tensor:
        mask = self._styles[name].mask
        if mask is None:
            return scale
        if like.ndim < 4:
            raise ValueError(
                "a style's mask must lie on a picture's or a video's latent, got one of shape "
                f"{tuple(like.shape)}; disconnect the mask"
            )
        return scale * comfy.sampler_helpers.prepare_mask(mask, like.shape, like.device)

    def _missed_call(self) -> str:
        """Return the error sentence for a sampler whose model call did not contain the styles."""
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
