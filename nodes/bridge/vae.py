"""Checks of what a VAE returns."""

from __future__ import annotations

import comfy.sd
import torch
from torch import Tensor


def require_finite(values: Tensor, vae: comfy.sd.VAE) -> None:
    """Check the pixels or the latent that a VAE returned.

    Raises:
        RuntimeError: They hold NaN, as those of fp16 VAEs do for some pictures.
    """
    if not torch.isfinite(values).all():
        raise RuntimeError(
            f"the VAE must give finite numbers, got NaN from one in {vae.vae_dtype}; "
            "start ComfyUI with --bf16-vae or --fp32-vae, or load a VAE that is made for fp16"
        )
