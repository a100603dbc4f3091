"""Low-rank changes of one layer: scale, weight delta, norm and forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The change ``scale * up @ down`` of one layer's weight.

    Args:
        down: ``(rank, in)`` or, for a convolution, ``(rank, in, kh, kw)``. ``A`` in the papers.
        up: ``(out, rank)`` or, for a convolution, ``(out, rank, 1, 1)``. ``B`` in the papers.
        alpha: Numerator of the scale; ``None`` means ``rank``, a scale of 1.

    Raises:
        ValueError: The factors don't share the rank axis.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.down.shape[0] != self.up.shape[1]:
            raise ValueError(
                "down and up must share the rank axis, "
                f"got {tuple(self.down.shape)} and {tuple(self.up.shape)}"
            )

    @property
    def rank(self) -> int:
        """Return the inner width of the product."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Return ``alpha / rank``, or 1 without an alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight that is changed, ``(out, in, ...)``."""
        return (self.up.shape[0], *self.down.shape[1:])


def delta(factors: LowRank) -> Tensor:
    """Return the change of the weight, ``(out, in, ...)``, in the factors' dtype."""
    product = factors.up.flatten(1) @ factors.down.flatten(1)  # (out, in * kh * kw)
    return (product * factors.scale).view(factors.shape)


def norm(factors: LowRank) -> float:
    """Return the Frobenius norm of the change, computed in fp64 without forming it."""
    up = factors.up.flatten(1).double() * factors.scale
    down = factors.down.flatten(1).double()
    return float(((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0.0).sqrt())


def difference(one: LowRank, other: LowRank) -> LowRank:
    """Return ``one - other`` as factors in fp64, whose rank is the sum of both ranks."""
    ups = one.up.flatten(1).double() * one.scale, other.up.flatten(1).double() * -other.scale
    downs = one.down.flatten(1).double(), other.down.flatten(1).double()
    return LowRank(torch.cat(downs), torch.cat(ups, 1))


def forward_delta(
    x: Tensor,
    factors: LowRank,
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    rank_weights: Tensor | None = None,
) -> Tensor:
    """Return the change of the layer's output, without forming the weight delta.

    The factors are cast to the dtype and device of ``x``; their own dtype receives the gradient.

    Args:
        x: ``(batch, ..., in)`` for a linear layer, ``(batch, in, h, w)`` for a convolution.
        factors: The layer's factors; a four-dimensional ``down`` makes it a convolution.
        stride: Stride of the base convolution; a linear layer ignores it.
        padding: Padding of the base convolution; a linear layer ignores it.
        dilation: Dilation of the base convolution; a linear layer ignores it.
        rank_weights: Multiplier of each rank's activation, ``(token, rank)`` or ``(rank,)``; for a
            convolution ``(rank, h, w)`` or ``(rank, 1, 1)``. 1 everywhere by default.
    """
    down = factors.down.to(device=x.device, dtype=x.dtype)
    up = factors.up.to(device=x.device, dtype=x.dtype)
    if down.ndim == 2:
        hidden = F.linear(x, down)  # (batch, ..., rank)
        hidden = hidden if rank_weights is None else hidden * rank_weights
        change = F.linear(hidden, up.flatten(1))  # (batch, ..., out)
    else:
        hidden = F.conv2d(x, down, stride=stride, padding=padding, dilation=dilation)
        hidden = hidden if rank_weights is None else hidden * rank_weights
        change = F.conv2d(hidden, up.view(*up.shape[:2], 1, 1))  # (batch, out, h, w)
    return change if factors.scale == 1.0 else change * factors.scale


def kaiming_down(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> Tensor:
    """Return a uniform random ``down`` of ``(rank, in, ...)``, bound ``1 / sqrt(fan_in)``.

    Args:
        shape: Shape of the base weight, ``(out, in, ...)``.
        rank: Number of rows.
        generator: CPU generator; the result is fp32 on the CPU.
    """
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return (torch.rand(rank, *shape[1:], generator=generator) * 2 - 1) / fan_in**0.5
