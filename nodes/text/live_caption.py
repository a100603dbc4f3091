"""Encode captions in every training step with the embeddings and text encoder of that step."""

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
from .trainable_encoder import TrainableTextEncoder
from .training_cond import Framing, TrainingCond


@dataclass(frozen=True)
class LiveCaption:
    """A caption that is encoded in every step, as its embeddings or its encoder are trained.

    A call with the current embeddings returns the caption with tokens that can be encoded.

    Args:
        bind: Function that returns the caption's tokens with the learnt embeddings, once for each
            layer of the denoiser.
        latent_shape: Shape of the picture's latent, ``(1, channel, ...)``.
        bindings: Number of token dictionaries that ``bind`` returns.
        batch_key: Result of ``batch_key``; equal for the captions of one forward pass.
        options: Further inputs of the model, such as SDXL's sizes.
        separate_pooled: Whether the last binding belongs to no layer and is the source of the
            pooled vector and of the ordinary context.
        watched_positions: Positions of the learnt words among the context's tokens.
        tokens: The bound tokens; empty before the call.
    """

    bind: Callable[[Mapping[str, Tensor]], Sequence[Tokens]]
    latent_shape: tuple[int, ...]
    bindings: int
    batch_key: Hashable
    options: Mapping[str, Any] = field(default_factory=dict)
    separate_pooled: bool = False
    watched_positions: tuple[int, ...] = ()
    tokens: Sequence[Tokens] = ()

    def __call__(self, learnt: Mapping[str, Tensor]) -> LiveCaption:
        """Return the caption with the current embeddings in its tokens."""
        return replace(self, tokens=self.bind(learnt))

    def shape_key(self) -> Hashable:
        """Return a key that is equal for conditions that fit into one forward pass."""
        watched = len(self.watched_positions)
        return ("learnt", self.bindings, self.batch_key, watched, self.latent_shape)


@dataclass(frozen=True)
class TokenizedCaption:
    """A caption for a text encoder that is trained: tokens, which are not encoded yet.

    Args:
        tokens: Tokens from ComfyUI's tokenizers.
    """

    tokens: Tokens

    @classmethod
    def of(cls, clip: CLIP, text: str) -> TokenizedCaption:
        """Return the tokens of a text; the CLIP is not modified."""
        return cls(clip.tokenize(text))

    def cond(self, latent: Tensor, framing: Framing | None = None) -> LiveCaption:
        """Return the caption of one picture, which is encoded in every step.

        Args:
            latent: ``(channel, ...)``; only its shape is used.
            framing: Original size and crop for SDXL; other models ignore it.
        """
        return LiveCaption(
            bind=lambda learnt: [self.tokens],
            latent_shape=(1, *latent.shape),
            bindings=1,
            batch_key=batch_key(self.tokens),
            options=picture_options(framing),
        )


def batch_key(tokens: Tokens) -> Hashable:
    """Return a key that is equal for captions that a text encoder can read in one batch."""
    return tuple(
        (
            key,
            any(weight != 1.0 for section in sections for _, weight in section),
            *(len(section) for section in sections),
        )
        for key, sections in tokens.items()
    )


def picture_options(framing: Framing | None) -> dict[str, Any]:
    """Return the model's options for a picture; Flux's distilled guidance is 1, which is none."""
    return {"guidance": 1.0, **(framing.as_options() if framing else {})}


def encode_live_captions(
    text: TrainableTextEncoder, model: Any, conds: Sequence[LiveCaption], device: torch.device
) -> list[TrainingCond]:
    """Return the encoded captions of one forward pass; differentiable.

    Args:
        text: The text encoder.
        model: The base model.
        conds: Captions with bound tokens.
        device: Device of the base model.
    """
    encoded = text.encode([cond.tokens for cond in conds])
    return [
        TrainingCond(_model_conds(model, cond, found, device))
        for cond, found in zip(conds, encoded, strict=True)
    ]


def _model_conds(
    model: Any, cond: LiveCaption, found: Sequence[tuple[Any, ...]], device: torch.device
) -> dict[str, Any]:
    base = found[-1]
    options = {**cond.options, "pooled_output": base[1], **(base[2] if len(base) > 2 else {})}
    texts: list[Tensor] = [one[0] for one in found]
    if device.type == "meta":
        # Some models compute a vector from the pooled one on the CPU, and a tensor on the meta
        # device cannot be copied there.
        conds = _converted(model, *_zeros_like(texts[-1], options), cond, torch.device("cpu"))
        anchor = sum((text.sum() for text in texts), texts[-1].new_zeros(())) * 0.0
        conds = {name: _linked(value, anchor) for name, value in conds.items()}
    else:
        conds = _converted(model, texts[-1], options, cond, device)
    layers = texts[:-1] if cond.separate_pooled else texts
    if cond.bindings > 1:
        conds[LAYERS] = CONDLayers(torch.stack(layers, dim=1).to(device))
    return conds


def _converted(
    model: Any, text: Tensor, options: Mapping[str, Any], cond: LiveCaption, device: torch.device
) -> dict[str, Any]:
    converted = comfy.sampler_helpers.convert_cond([[text, dict(options)]])
    noise = torch.zeros(cond.latent_shape, device=device)
    encoded = comfy.samplers.process_conds(
        model, noise, {"positive": converted}, device, latent_shapes=[cond.latent_shape]
    )
    return dict(encoded["positive"][0]["model_conds"])


def _zeros_like(text: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    def empty(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

    return empty(text), {name: empty(value) for name, value in options.items()}


def _linked(value: Any, anchor: Tensor) -> Any:
    """Return the condition on the meta device, with a gradient path to the texts through anchor."""
    if isinstance(value.cond, Tensor) and value.cond.is_floating_point():
        return value._copy_with(value.cond.to("meta") + anchor)
    return value
