"""Break-for-Make: half of each projection frozen at a shared basis, the other half learnt."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..factors import LowRank

Start = Literal["orthogonal", "released", "exact", "gaussian"]
STARTS: tuple[Start, ...] = get_args(Start)

RELEASED_ROWS = 1280
"""Rows of the orthonormal matrix that the released code draws, whatever the layer's width."""

_FORMAT = 1
"""Of the draw; another number is another basis under the same seed."""

_RELEASED_ENDS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class PartlyLearnable:
    """Freeze the top rows of ``up`` and the left columns of ``down`` and learn the rest.

    With ``up = [up_frozen; up]`` and ``down = [down_frozen, down]`` one concept owns the learnt
    columns and another the learnt rows. The frozen halves depend on (layer name, shape, rank,
    ``basis_seed``, ``start``) alone, never on the run or the adapter, so halves that are trained
    apart fit together.

    Args:
        basis_seed: Of the frozen halves.
        start: ``orthogonal`` draws one matrix with orthonormal columns per layer and shares its
            rows out to both frozen halves. ``released`` does what the authors' code does: that
            only in square query, key and value layers, elsewhere a Gaussian beside a frozen half
            of zeros. ``exact`` splits the rank, so that the frozen halves' product is zero and
            training starts at the base. ``gaussian`` draws halves of the orthogonal ones' size
            without their prior, to compare with.
        given: Layers by name that training starts from in place of a draw; nothing of them is
            drawn again.

    Raises:
        ValueError: The start is none of the four.

    Reference: Xu et al. 2024, arXiv:2403.19456, and its released code.
    """

    basis_seed: int = 0
    start: Start = "orthogonal"
    given: Mapping[str, LowRank] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")

    @property
    def starts_at_base(self) -> bool:
        """Return whether the change is zero before training: the frozen halves' product counts."""
        return self.start == "exact" and self.given is None

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return the frozen and the learnt halves, or those of the layer that is given.

        Learnt columns start as the released code's, Gaussian of deviation ``1 / rank``, or at
        zero where ``exact`` asks for it; learnt rows start at zero.

        Raises:
            ValueError: The rank exceeds half the layer's smaller side, or the given layers lack
                this one or have another shape or rank.
        """
        check_rank(shape, rank)
        if self.given is not None:
            return _given_parts(self.given, shape, rank, site)
        down_frozen, up_frozen = frozen_halves(site, shape, rank, self.basis_seed, self.start)
        columns = (rank, shape[1] - shape[1] // 2, *shape[2:])
        down = torch.zeros(columns)
        if self.start != "exact":
            down = torch.randn(columns, generator=generator) / rank
        rows = (shape[0] - shape[0] // 2, rank, *([1] * (len(shape) - 2)))
        return {
            "down_frozen": down_frozen,
            "up_frozen": up_frozen,
            "down": down,
            "up": torch.zeros(rows),
        }

    def trainable(self) -> frozenset[str]:
        """Return the learnt columns ``down`` and the learnt rows ``up``."""
        return frozenset({"down", "up"})

    def factors(self, parts: Mapping[str, Tensor]) -> LowRank:
        """Return both factors whole, frozen halves first."""
        down = torch.cat([parts["down_frozen"], parts["down"]], dim=1)
        return LowRank(down, torch.cat([parts["up_frozen"], parts["up"]], dim=0))


def check_rank(shape: tuple[int, ...], rank: int, start: Start = "orthogonal") -> None:
    """Refuse a rank that the frozen halves of a layer can't hold.

    Raises:
        ValueError: The rank exceeds half the layer's smaller side, or ``exact`` can't split it.
    """
    if start == "exact" and rank < 2:
        raise ValueError(
            "the exact start shares the rank between both halves and needs at least 2, "
            f"got {rank}; raise rank"
        )
    smaller = min(shape[0], math.prod(shape[1:]))
    if 2 * rank > smaller:
        raise ValueError(
            "half a projection must hold the whole rank, "
            f"got rank {rank} for a smaller side of {smaller}; set rank to {smaller // 2} or less"
        )


def frozen_halves(
    site: str, shape: tuple[int, ...], rank: int, basis_seed: int, start: Start
) -> tuple[Tensor, Tensor]:
    """Return the left columns of ``down`` and the top rows of ``up`` of one layer.

    Args:
        site: The layer's name; it decides the draw.
        shape: Of the base weight, ``(out, in, ...)``.
        rank: Inner width.
        basis_seed: Of the draw.
        start: As in ``PartlyLearnable``.

    Returns:
        ``(rank, in // 2, ...)`` and ``(out // 2, rank, ...)``, fp32 on the CPU.

    Raises:
        ValueError: As ``check_rank``.
    """
    check_rank(shape, rank, start)
    generator = _generator(site, shape, rank, basis_seed)
    rows, columns = shape[0] // 2, (shape[1] // 2) * math.prod(shape[2:])
    if start == "orthogonal":
        basis = _orthonormal_columns(columns + rows, rank, generator)
        down, up = basis[:columns].mT, basis[columns:]
    elif start == "gaussian":
        spread = (columns + rows) ** -0.5
        down = torch.randn(rank, columns, generator=generator) * spread
        up = torch.randn(rows, rank, generator=generator) * spread
    elif start == "exact":
        first = rank // 2
        down, up = torch.zeros(rank, columns), torch.zeros(rows, rank)
        down[:first] = _orthonormal_columns(columns, first, generator).mT
        up[:, first:] = _orthonormal_columns(rows, rank - first, generator)
    elif shape[0] == shape[1] and len(shape) == 2 and site.endswith(_RELEASED_ENDS):
        # Differs from the paper: the released 1,280 rows don't fit a wider layer and end the run;
        # there the layer's width is taken.
        size = max(RELEASED_ROWS, shape[1])
        basis = _orthonormal_columns(size, rank, generator)
        order = torch.randperm(size, generator=generator)
        rest = order[columns:].sort().values
        down, up = basis[order[:columns]].mT, basis[rest[:rows]]
    else:
        down = torch.randn(rank, columns, generator=generator) / rank
        up = torch.zeros(rows, rank)
    down = down.reshape(rank, shape[1] // 2, *shape[2:]).contiguous()
    return down, up.reshape(rows, rank, *([1] * (len(shape) - 2))).contiguous()


def split(factors: LowRank) -> dict[str, Tensor]:
    """Return the four parts that ``PartlyLearnable.factors`` puts together, as views."""
    columns, rows = factors.down.shape[1] // 2, factors.up.shape[0] // 2
    return {
        "down_frozen": factors.down[:, :columns],
        "up_frozen": factors.up[:rows],
        "down": factors.down[:, columns:],
        "up": factors.up[rows:],
    }


def basis_digest(
    shapes: Mapping[str, tuple[int, ...]], rank: int, basis_seed: int, start: Start
) -> str:
    """Return the name of a whole set of frozen halves, 16 hexadecimal digits.

    It names what the halves are drawn from, not their bytes: machines may round a draw otherwise.

    Args:
        shapes: Of the base weights by layer name, in any order.
        rank: Inner width.
        basis_seed: Of the draw.
        start: As in ``PartlyLearnable``.
    """
    layers = sorted((name, list(shape)) for name, shape in shapes.items())
    text = json.dumps([_FORMAT, start, basis_seed, rank, layers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _given_parts(
    given: Mapping[str, LowRank], shape: tuple[int, ...], rank: int, site: str
) -> dict[str, Tensor]:
    if site not in given:
        raise ValueError(
            "the halves must have every layer that is trained, got none for this one; choose the "
            "target layers that they were trained with"
        )
    factors = given[site]
    if (factors.shape, factors.rank, factors.scale) != (shape, rank, 1.0):
        raise ValueError(
            f"the halves must fit a layer of shape {shape}, rank {rank} and scale 1, got "
            f"{factors.shape}, {factors.rank} and {factors.scale:g}; choose halves of this base"
        )
    return {name: part.clone() for name, part in split(factors).items()}


def _generator(site: str, shape: tuple[int, ...], rank: int, basis_seed: int) -> torch.Generator:
    place = repr((_FORMAT, basis_seed, site, tuple(shape), rank)).encode()
    number = int.from_bytes(hashlib.sha256(place).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def _orthonormal_columns(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a ``(rows, columns)`` matrix with orthonormal columns, uniform among all such."""
    gaussian = torch.randn(rows, columns, generator=generator)
    # In fp64, so that the rounding of another LAPACK hardly ever reaches the fp32 result.
    basis, triangle = torch.linalg.qr(gaussian.double())
    # LAPACK leaves the signs open: with a positive diagonal the draw is unique.
    return (basis * triangle.diagonal().sign()).float()
