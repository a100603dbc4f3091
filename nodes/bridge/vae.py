"""Check the output of a VAE."""

from __future__ import annotations

import comfy.sd
import torch
from torch import Tensor


def require_finite(values: Tensor, vae: comfy.sd.VAE) -> None:
    """Raise unless the pixels or the latent from a VAE are finite.

    Raises:
        RuntimeError: A value is NaN or infinite, as fp16 VAEs give for some pictures.
    """
    if not torch.isfinite(values).all():
        raise RuntimeError(
            f"the VAE must give finite numbers, got NaN from one in {vae.vae_dtype}; "
            "start ComfyUI with --bf16-vae or --fp32-vae, or load a VAE that is made for fp16"
        )
