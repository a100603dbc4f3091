"""The denoising loss in the space of the model's output."""

from __future__ import annotations

from torch import Tensor


def output_errors(
    denoised: Tensor, latent: Tensor, output_scale: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Return each row's mean squared error of the model's own output, ``(batch,)``.

    Every parameterisation is affine, ``denoised = a x + b output``, so dividing the error of the
    clean latent by ``b`` gives the error of eps, v or velocity without code per class.

    Args:
        denoised: ``(batch, channel, ...)`` predicted clean latents.
        latent: ``(batch, channel, ...)`` true clean latents.
        output_scale: ``b``, broadcastable to the same shape.
        counts: Weight of each cell, ``(batch, 1, ...)``, not all zero in a row; the result is the
            weighted mean.

    Note:
        Mix-of-Show's released code divides a masked sum over all channels by the mask's sum over
        one channel, which is this mean times the number of channels.

    Reference: Ho et al. 2020, arXiv:2006.11239, equation 14; Salimans & Ho 2022, arXiv:2202.00512.
    """
    error = (denoised.float() - latent.float()) / output_scale.float()
    squares = error.square()
    if counts is None:
        return squares.flatten(1).mean(dim=1)
    counts = counts.float().expand_as(squares).flatten(1)
    return (squares.flatten(1) * counts).sum(dim=1) / counts.sum(dim=1)
