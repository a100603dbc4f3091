"""The mathematics of the pack: pure functions of tensors."""

from .bases import disjoint_bases, orthonormal_rows
from .factors import LowRank, delta, forward_delta
from .guidance import cfg, style_guidance
from .keyframes import Keyframes, parse_keyframes
from .parametrizations import PARAMETRIZATIONS, Parametrization
from .parametrizations.orthogonal_pair import OrthogonalRows
from .parametrizations.plain import Plain

__all__ = [
    "PARAMETRIZATIONS",
    "Keyframes",
    "LowRank",
    "OrthogonalRows",
    "Parametrization",
    "Plain",
    "cfg",
    "delta",
    "disjoint_bases",
    "forward_delta",
    "orthonormal_rows",
    "parse_keyframes",
    "style_guidance",
]
