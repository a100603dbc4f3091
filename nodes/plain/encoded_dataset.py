"""Split the latents and conditioning of ComfyUI's training datasets into single pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..bridge.conditioning import Conditioning


@dataclass(frozen=True)
class EncodedPicture:
    """One picture of a training dataset.

    Args:
        latent: ``(1, channel, ...)``, latent from a VAE.
        conditioning: Encoded caption.
    """

    latent: Tensor
    conditioning: Conditioning


def encoded_pictures(
    model: ModelPatcher,
    latents: Sequence[Mapping[str, Any]],
    conditioning: Sequence[Conditioning],
) -> list[EncodedPicture]:
    """Return the single pictures of ComfyUI's training datasets, including bucketed ones.

    Args:
        model: Base model.
        latents: LATENTs of a VAE, ``(batch, channel, ...)`` each.
        conditioning: One CONDITIONING per LATENT, with one entry for the whole batch or one for
            each latent.

    Raises:
        ValueError: The counts differ, or the latents belong to another model.
    """
    if len(latents) != len(conditioning):
        raise ValueError(
            f"latents and conditioning must be equally many, got {len(latents)} and "
            f"{len(conditioning)}; connect both from the same node"
        )
    found = []
    for number, (latent, entries) in enumerate(zip(latents, conditioning, strict=True), start=1):
        samples = latent["samples"]
        _require_own_latent(model, samples, number)
        if len(entries) not in (1, len(samples)):
            raise ValueError(
                f"a batch of latents must have one conditioning or one for each, got "
                f"{len(entries)} for {len(samples)} latents in entry {number}"
            )
        for index in range(len(samples)):
            entry = entries[index] if len(entries) > 1 else entries[0]
            found.append(EncodedPicture(samples[index : index + 1], [entry]))
    return found


def _require_own_latent(model: ModelPatcher, samples: Tensor, number: int) -> None:
    layout = model.model.latent_format
    expected = (layout.latent_channels, layout.latent_dimensions)
    if (samples.shape[1], samples.ndim - 2) != expected:
        raise ValueError(
            f"latents must be made by this model's VAE, with {expected[0]} channels and "
            f"{expected[1]} dimensions, got the shape {tuple(samples.shape)} in entry {number}; "
            "make the dataset with the same checkpoint"
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"latents must hold finite numbers, got NaN or infinity in entry {number}; "
            "make the dataset anew with --bf16-vae or --fp32-vae"
        )
