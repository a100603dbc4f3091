"""Guidance formulas on predictions; the coefficients sum to one, so any parameterisation serves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def cfg(uncond_denoised: Tensor, cond_denoised: Tensor, cfg_scale: float) -> Tensor:
    """Return classifier-free guidance of two predictions of equal shape.

    Reference: Ho & Salimans 2022, arXiv:2207.12598, equation 6.
    """
    return uncond_denoised + cfg_scale * (cond_denoised - uncond_denoised)


def style_guidance(
    denoised: Tensor,
    cond_denoised: Tensor,
    styles: Sequence[tuple[Tensor, float | Tensor]],
) -> Tensor:
    """Add every style's direction, ``style_scale * (style_denoised - cond_denoised)``.

    With ``denoised`` the result of ``cfg`` this is equation 10 for one style and equation 11 for
    several. A scale of zero leaves ``denoised`` bit-equal.

    Args:
        denoised: ``(batch, channel, ...)``, already guided.
        cond_denoised: Same shape, the base model's prediction for the plain prompt.
        styles: Pairs of the styled prediction, same shape, and its scale: a number, or a tensor
            that broadcasts to the prediction (a scale with a mask).

    Returns:
        Same shape as ``denoised``; ``denoised`` itself when no style has a scale.

    Reference: Jones et al. 2024, arXiv:2405.01536, equations 10 and 11.
    """
    for style_denoised, style_scale in styles:
        if isinstance(style_scale, Tensor) or style_scale != 0:
            denoised = denoised + style_scale * (style_denoised - cond_denoised)
    return denoised
