"""Break-for-Make: freeze half of each projection at a shared basis and learn the other half."""

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

RELEASED_ROWS = 1280  # rows of the orthonormal matrix in the released code, for layers of any width

_FORMAT = 1  # version of the random draw; a new number gives another basis for the same seed

_RELEASED_ENDS = ("to_q", "to_k", "to_v")  # layers with an orthonormal basis in the released code


@dataclass(frozen=True)
class PartlyLearnable:
    """Freeze the top rows of ``up`` and the left columns of ``down`` and learn the rest.

    With ``up = [up_frozen; up]`` and ``down = [down_frozen, down]`` one concept owns the learnt
    columns and another the learnt rows. The frozen halves depend only on (layer name, shape, rank,
    ``basis_seed``, ``start``), never on the run or the adapter, so halves that are trained
    separately fit together.

    Args:
        basis_seed: Seed of the frozen halves.
        start: Initialisation. ``orthogonal`` draws one matrix with orthonormal columns per layer
            and splits its rows between both frozen halves. ``released`` follows the authors' code:
            it does the same in square query, key and value layers only, and elsewhere combines a
            Gaussian ``down`` with a frozen ``up`` of zeros. ``exact`` splits the rank, so that the
            product of the frozen halves is zero and training starts at the base. ``gaussian`` draws
            halves of the same size without orthogonality, for comparison.
        given: Layers by name that training starts from in place of a random initialisation.

    Raises:
        ValueError: The start is not one of the four.

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
        """Return whether the change is zero before training, frozen halves included."""
        return self.start == "exact" and self.given is None

    def init(
        self, shape: tuple[int, ...], rank: int, generator: torch.Generator, site: str = ""
    ) -> dict[str, Tensor]:
        """Return the frozen and the learnt halves, or those of the given layer.

        Learnt columns start from a Gaussian of deviation ``1 / rank``, as in the released code, or
        at zero with ``exact``. Learnt rows start at zero.

        Raises:
            ValueError: The rank exceeds half the layer's smaller side, or this layer is missing
                from the given layers or has another shape or rank there.
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
        """Return both whole factors, with the frozen halves first."""
        down = torch.cat([parts["down_frozen"], parts["down"]], dim=1)
        return LowRank(down, torch.cat([parts["up_frozen"], parts["up"]], dim=0))


def check_rank(shape: tuple[int, ...], rank: int, start: Start = "orthogonal") -> None:
    """Raise unless the frozen halves of a layer can have the rank.

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
        site: The layer's name, which is part of the seed.
        shape: Shape of the base weight, ``(out, in, ...)``.
        rank: Rank of the factors.
        basis_seed: Seed of the frozen halves.
        start: Initialisation, described in ``PartlyLearnable``.

    Returns:
        ``(rank, in // 2, ...)`` and ``(out // 2, rank, ...)``, fp32 on the CPU.

    Raises:
        ValueError: The rank exceeds half the layer's smaller side, or ``exact`` can't split it.

    Note:
        The released code draws 1,280 rows and fails on a wider layer; here such a layer uses as
        many rows as it is wide.
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
    """Return the four parts that ``PartlyLearnable.factors`` concatenates, as views."""
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
    """Return an identifier of a whole set of frozen halves, 16 hexadecimal digits.

    It is a hash of what determines the halves, not of their bytes, because machines may round the
    random numbers differently.

    Args:
        shapes: Shapes of the base weights by layer name, in any order.
        rank: Rank of the factors.
        basis_seed: Seed of the frozen halves.
        start: Initialisation, described in ``PartlyLearnable``.
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
    """Return a uniformly random ``(rows, columns)`` matrix with orthonormal columns."""
    gaussian = torch.randn(rows, columns, generator=generator)
    # fp64 keeps the rounding differences between LAPACK versions out of the fp32 result.
    basis, triangle = torch.linalg.qr(gaussian.double())
    # LAPACK does not fix the signs; a positive diagonal makes the result unique.
    return (basis * triangle.diagonal().sign()).float()
