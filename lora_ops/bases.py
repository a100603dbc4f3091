"""Orthonormal rows drawn from a seed: the frozen halves of the papers' adapters."""

from __future__ import annotations

import torch
from torch import Tensor

THIN_ABOVE = 4096  # wider layers use a thin QR: a full one at Flux's 15,360 takes 2 GB and minutes


def orthonormal_rows(width: int, rows: int, seed: int) -> Tensor:
    """Return the first ``rows`` rows of a random orthogonal matrix.

    The generator is seeded again for every width, so layers of equal width share one basis and the
    rows never need to be stored. Up to ``THIN_ABOVE`` the matrix is the ``Q`` of a full square
    Gaussian, which reproduces the released basis; above it, ``Q`` of a thin Gaussian, transposed.

    Args:
        width: Length of a row, the layer's input width.
        rows: Number of rows, at most ``width``.
        seed: Seed of the Gaussian matrix.

    Returns:
        ``(rows, width)`` in fp32 on the CPU; ``rows @ rows.T`` is the identity.

    Raises:
        ValueError: There are more rows than the width allows.

    Reference: Jones et al. 2024, arXiv:2405.01536, section 3.2.
    """
    if rows > width:
        raise ValueError(
            f"orthonormal rows must fit the layer's width, got {rows} rows for width {width}; "
            "lower the rank"
        )
    generator = torch.Generator().manual_seed(seed)
    if width <= THIN_ABOVE:
        gaussian = torch.randn(width, width, generator=generator)
        return torch.linalg.qr(gaussian).Q[:rows].clone()
    gaussian = torch.randn(width, rows, generator=generator)
    return torch.linalg.qr(gaussian).Q.mT.contiguous()


def disjoint_bases(
    width: int, content_rank: int, style_rank: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return content and style rows of one orthonormal basis, orthogonal to each other.

    Args:
        width: The layer's input width.
        content_rank: Rows of the first part.
        style_rank: Rows of the second part.
        seed: Seed of the basis.

    Returns:
        ``(content_rank, width)`` and ``(style_rank, width)``, fp32 on the CPU.

    Reference: Jones et al. 2024, arXiv:2405.01536, section 3.2.
    """
    rows = orthonormal_rows(width, content_rank + style_rank, seed)
    return rows[:content_rank].clone(), rows[content_rank:].clone()
