"""What the training loop needs of a base model; `nodes/trainer/denoiser.py` fulfils it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One image as the denoiser sees it.

    Args:
        latent: ``(channel, ...)`` without a batch axis, as the model takes it, fp32 on the CPU.
        cond: The caption's conditioning in the denoiser's own form; the loop only passes it on. A
            callable is called anew each step with the learnt embeddings by name and returns it.
        mask: What each cell of the latent counts, ``(1, ...)`` of the latent's size in 0..1; all
            alike without one.
        uncond: The empty caption's conditioning, for caption dropout.
    """

    latent: Tensor
    cond: Any
    mask: Tensor | None = None
    uncond: Any = None


class Denoiser(Protocol):
    """A base model as ``model(x, sigma, conds) -> denoised``, plus its noise schedule."""

    device: torch.device

    def sigma_at(self, share: Tensor) -> Tensor:
        """Return the noise levels at ``share`` in [0, 1) of the model's table, ``(batch,)``."""
        ...

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the model's own forward process, all ``(batch, channel, ...)``."""
        ...

    def output_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        """Return ``b`` in ``denoised = a * x + b * model_output``, broadcast to ``like``."""
        ...

    def pack_key(self, example: Example) -> Hashable:
        """Return a key that is equal for examples that fit into one forward."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        """Return the prediction of the clean latent, differentiable, one cond per row."""
        ...


@runtime_checkable
class ShowsAttention(Protocol):
    """A denoiser that can tell where its layers look at the learnt words."""

    def attention(self) -> Sequence[Tensor]:
        """Return the maps of the last ``denoise``, differentiable, ``(row, word, h, w)`` per size.

        Each is the mean over the heads and the layers of one size; none where the conds watch no
        word.
        """
        ...
