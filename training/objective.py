"""The denoising loss in the space of the model's output."""

from __future__ import annotations

from torch import Tensor


def output_errors(denoised: Tensor, latent: Tensor, output_scale: Tensor) -> Tensor:
    """Return each row's mean squared error of the model's own output, ``(batch,)``.

    Every parameterisation is affine, ``denoised = a x + b output``, so dividing the error of the
    clean latent by ``b`` gives the error of eps, v or velocity without code per class.

    Args:
        denoised: ``(batch, channel, ...)`` predicted clean latents.
        latent: Same shape, the true ones.
        output_scale: ``b``, broadcastable to the same shape.

    Reference: Ho et al. 2020, arXiv:2006.11239, equation 14; Salimans & Ho 2022, arXiv:2202.00512.
    """
    error = (denoised.float() - latent.float()) / output_scale.float()
    return error.square().flatten(1).mean(dim=1)
