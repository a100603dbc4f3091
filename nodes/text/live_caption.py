"""Captions that are encoded anew in every step, of what is learnt by then."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.sd import CLIP
from torch import Tensor

from .concept_prompt import Tokens
from .layer_contexts import LAYERS, CONDLayers
from .trainable_encoder import LearntText
from .training_cond import Framing, TrainingCond


@dataclass(frozen=True)
class LearntCond:
    """A caption that depends on what is learnt; called with the embeddings, it can be encoded.

    Args:
        bind: Makes the caption's tokens of the learnt embeddings, once per layer of the denoiser.
        latent_shape: Of the picture, ``(1, channel, ...)``.
        options: What else the model is told, such as SDXL's sizes.
        bindings: How many ``bind`` makes.
        lengths: Of ``lengths``: captions of one forward have the same.
        pooled_apart: Whether the last one is none of the layers', but what the pooled vector and
            the ordinary context are made of.
        watched: Places of the learnt words among the context's tokens.
        said: The bound tokens; none before the call.
    """

    bind: Callable[[Mapping[str, Tensor]], Sequence[Tokens]]
    latent_shape: tuple[int, ...]
    bindings: int
    lengths: Hashable
    options: Mapping[str, Any] = field(default_factory=dict)
    pooled_apart: bool = False
    watched: tuple[int, ...] = ()
    said: Sequence[Tokens] = ()

    def __call__(self, learnt: Mapping[str, Tensor]) -> LearntCond:
        """Return the caption with the embeddings as they are now."""
        return replace(self, said=self.bind(learnt))

    def shape_key(self) -> Hashable:
        """Return a key that is equal for conditions that fit into one forward."""
        return ("learnt", self.bindings, self.lengths, len(self.watched), self.latent_shape)


@dataclass(frozen=True)
class Wording:
    """A caption for a text encoder that is trained: its tokens, no conditioning yet.

    Args:
        tokens: As ComfyUI's tokenizers give them.
    """

    tokens: Tokens

    @classmethod
    def of(cls, clip: CLIP, text: str) -> Wording:
        """Return the wording of a text; the CLIP is never changed."""
        return cls(clip.tokenize(text))

    def cond(self, latent: Tensor, framing: Framing | None = None) -> LearntCond:
        """Return the caption of one picture, to be encoded in every step.

        Args:
            latent: ``(channel, ...)``; only its shape is read.
            framing: True size and crop for SDXL; others ignore it.
        """
        return LearntCond(
            bind=lambda learnt: [self.tokens],
            latent_shape=(1, *latent.shape),
            bindings=1,
            lengths=lengths(self.tokens),
            options=picture_options(framing),
        )


def lengths(tokens: Tokens) -> Hashable:
    """Return what two captions have alike that a text encoder reads in one batch."""
    return tuple(
        (
            key,
            any(weight != 1.0 for section in sections for _, weight in section),
            *(len(section) for section in sections),
        )
        for key, sections in tokens.items()
    )


def picture_options(framing: Framing | None) -> dict[str, Any]:
    """Return what the model is told of a picture; Flux's distilled guidance is 1, so unguided."""
    return {"guidance": 1.0, **(framing.as_options() if framing else {})}


def learnt_conds(
    text: LearntText, model: Any, conds: Sequence[LearntCond], device: torch.device
) -> list[TrainingCond]:
    """Return the captions of one forward encoded, differentiable.

    Args:
        text: The text encoder.
        model: The base model.
        conds: Bound.
        device: Of the base model.
    """
    encoded = text.encode([cond.said for cond in conds])
    return [
        TrainingCond(_model_conds(model, cond, found, device))
        for cond, found in zip(conds, encoded, strict=True)
    ]


def _model_conds(
    model: Any, cond: LearntCond, found: Sequence[tuple[Any, ...]], device: torch.device
) -> dict[str, Any]:
    base = found[-1]
    options = {**cond.options, "pooled_output": base[1], **(base[2] if len(base) > 2 else {})}
    texts = [one[0] for one in found]
    if device.type == "meta":
        # Some models make a vector of the pooled one on the CPU, where nothing from here can go.
        conds = _converted(model, *_hollow_of(texts[-1], options), cond, torch.device("cpu"))
        anchor = 0.0 * sum(text.sum() for text in texts)
        conds = {name: _linked(value, anchor) for name, value in conds.items()}
    else:
        conds = _converted(model, texts[-1], options, cond, device)
    layers = texts[:-1] if cond.pooled_apart else texts
    if cond.bindings > 1:
        conds[LAYERS] = CONDLayers(torch.stack(layers, dim=1).to(device))
    return conds


def _converted(
    model: Any, text: Tensor, options: Mapping[str, Any], cond: LearntCond, device: torch.device
) -> dict[str, Any]:
    converted = comfy.sampler_helpers.convert_cond([[text, dict(options)]])
    noise = torch.zeros(cond.latent_shape, device=device)
    encoded = comfy.samplers.process_conds(
        model, noise, {"positive": converted}, device, latent_shapes=[cond.latent_shape]
    )
    return dict(encoded["positive"][0]["model_conds"])


def _hollow_of(text: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    def empty(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

    return empty(text), {name: empty(value) for name, value in options.items()}


def _linked(value: Any, anchor: Tensor) -> Any:
    """Return a condition of the same shape on the meta device that depends on the texts."""
    if isinstance(value.cond, Tensor) and value.cond.is_floating_point():
        return value._copy_with(value.cond.to("meta") + anchor)
    return value
