"""The interface of a base model in training; `nodes/trainer/denoiser.py` implements it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One encoded training image with its conditioning.

    Args:
        latent: ``(channel, ...)`` without a batch axis, in the model's scale, fp32 on the CPU.
        cond: The caption's conditioning, opaque to the loop. A callable is called in each step with
            the learnt embeddings by name and returns the conditioning.
        mask: Weight of each latent cell, ``(1, ...)`` of the latent's size in 0..1; None weights
            all cells equally.
        uncond: Conditioning of the empty caption, for caption dropout.
    """

    latent: Tensor
    cond: Any
    mask: Tensor | None = None
    uncond: Any = None


class Denoiser(Protocol):
    """A base model as ``model(x, sigma, conds) -> denoised``, plus its noise schedule."""

    device: torch.device

    def sigma_at(self, share: Tensor) -> Tensor:
        """Return the noise levels at a fraction in [0, 1) of the model's schedule, ``(batch,)``."""
        ...

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the noised latents of the model's forward process, ``(batch, channel, ...)``."""
        ...

    def output_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        """Return ``b`` in ``denoised = a * x + b * model_output``, broadcast to ``like``."""
        ...

    def pack_key(self, example: Example) -> Hashable:
        """Return a key that is equal for examples that fit into one forward pass."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        """Return the differentiable prediction of the clean latents, with one cond per row."""
        ...


@runtime_checkable
class ExposesAttention(Protocol):
    """A denoiser that exposes cross-attention maps of the learnt words."""

    def attention(self) -> Sequence[Tensor]:
        """Return the differentiable maps of the last ``denoise``, ``(row, word, h, w)`` per size.

        Each map is the mean over the heads and layers of one size. There are none if the conds mark
        no words.
        """
        ...
