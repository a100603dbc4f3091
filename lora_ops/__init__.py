"""The mathematics of the pack: pure functions of tensors."""

from .bases import disjoint_bases, orthonormal_rows
from .factors import LowRank, delta, difference, forward_delta, norm
from .fusion import (
    STAGE_DAMPING,
    Fused,
    Target,
    expanded,
    fuse_from_gram,
    fuse_from_rows,
    span_basis,
    statistics_of_rows,
    within_span,
)
from .fusion_objective import (
    concept_error,
    damped_objective,
    damping_at_norm,
    plain_average,
    weighted_error,
)
from .gram import Gram, GramStream, ProjectedStream, span_holds
from .guidance import cfg, style_guidance
from .halves import check_halves, join_halves, owned_part, partner_part
from .keyframes import Keyframes, parse_keyframes
from .mixing import (
    Mixing,
    area_weights,
    mix_regions,
    pooled_mean,
    regional_attention,
    stream_bias,
)
from .parametrizations import PARAMETRIZATIONS, Parametrization
from .parametrizations.orthogonal_pair import OrthogonalRows
from .parametrizations.partly_learnable import PartlyLearnable, basis_digest
from .parametrizations.plain import Plain
from .preconditioner import Damping, riemannian_gradients
from .region_text import parse_layout, parse_regions, regions_text
from .regions import (
    CELL_RULES,
    Box,
    Region,
    cells,
    region_mask,
    strength_map,
    token_grid,
    token_masks,
    within_area,
)
from .row_sample import RowSample
from .truncation import Truncation, factorised, refactored, truncated

__all__ = [
    "CELL_RULES",
    "PARAMETRIZATIONS",
    "STAGE_DAMPING",
    "Box",
    "Damping",
    "Fused",
    "Gram",
    "GramStream",
    "Keyframes",
    "LowRank",
    "Mixing",
    "OrthogonalRows",
    "Parametrization",
    "PartlyLearnable",
    "Plain",
    "ProjectedStream",
    "Region",
    "RowSample",
    "Target",
    "Truncation",
    "area_weights",
    "basis_digest",
    "cells",
    "cfg",
    "check_halves",
    "concept_error",
    "damped_objective",
    "damping_at_norm",
    "delta",
    "difference",
    "disjoint_bases",
    "expanded",
    "factorised",
    "forward_delta",
    "fuse_from_gram",
    "fuse_from_rows",
    "join_halves",
    "mix_regions",
    "norm",
    "orthonormal_rows",
    "owned_part",
    "parse_keyframes",
    "parse_layout",
    "parse_regions",
    "partner_part",
    "plain_average",
    "pooled_mean",
    "refactored",
    "region_mask",
    "regional_attention",
    "regions_text",
    "riemannian_gradients",
    "span_basis",
    "span_holds",
    "statistics_of_rows",
    "stream_bias",
    "strength_map",
    "style_guidance",
    "token_grid",
    "token_masks",
    "truncated",
    "weighted_error",
    "within_area",
    "within_span",
]
