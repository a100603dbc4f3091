"""Fusion of sites too wide for their Grams: within the span of the concepts' rows."""

import pytest
import torch
from fusion_cases import (
    OUT,
    RANK,
    WIDTH,
    close,
    concepts,
    gram_of,
    oracle,
    projected,
    rows_parts,
    sum_of,
    whole,
)
from pack.lora_ops import LowRank
from pack.lora_ops.fusion import Target, expanded, fuse_from_gram, span_basis, within_span
from pack.lora_ops.fusion_objective import plain_average, weighted_error


def span_case(anchor: str, damping: float, rows, wanted):
    basis = span_basis([one.factors.down for one in wanted])
    inside = [within_span(one, basis) for one in wanted]
    grams = [gram_of(x, span=basis) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(inside, grams, strict=True)]
    total = sum_of(grams, inside)
    fused = fuse_from_gram(inside, parts, total, damping=damping, anchor=anchor)
    found = expanded(fused, basis, wanted[0].factors.shape)
    return found, weighted_error(
        found.factors, wanted, rows_parts(wanted, rows), whole(wanted, rows)
    )


@pytest.mark.parametrize("anchor", ["base", "average"])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_span_form_is_the_full_form_where_the_optimum_lies_in_the_span(damping, anchor):
    wanted, rows = concepts(count=2, width=WIDTH)
    basis = span_basis([one.factors.down for one in wanted])
    assert basis.shape == (5, WIDTH)
    rows = [x @ basis.mT @ basis for x in rows]  # inputs that never leave the span
    found, _ = span_case(anchor, damping, rows, wanted)
    close(found, oracle(wanted, rows, relative_damping=damping, average=anchor == "average"))
    assert found.factors.rank == 5


def test_span_form_lies_between_the_average_and_the_optimum():
    wanted, rows = concepts()
    wanted, rows = wanted[:2], rows[:2]
    found, in_span = span_case("base", 0.0, rows, wanted)
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    full = fuse_from_gram(wanted, parts, total, damping=0.0)
    best = weighted_error(full.factors, wanted, parts, total)
    average = weighted_error(plain_average(wanted), wanted, parts, total)
    assert best < in_span < average
    assert found.factors.rank == 5


def test_a_concept_without_the_layer_has_no_part_in_the_span():
    wanted, rows = concepts(count=2)
    nothing = Target(LowRank(torch.zeros(0, WIDTH).double(), torch.zeros(OUT, 0).double()))
    basis = span_basis([wanted[0].factors.down])
    inside = [within_span(one, basis) for one in (wanted[0], nothing)]
    assert (inside[1].factors.down.shape, inside[1].up.shape) == ((0, RANK), (OUT, 0))
    seen = [x @ basis.mT @ basis for x in rows]
    found, _ = span_case("base", 0.01, seen, [wanted[0], nothing])
    close(found, oracle([wanted[0], nothing], seen, relative_damping=0.01))


def test_a_span_of_dependent_rows_is_as_wide_as_its_rank():
    wanted, _ = concepts(count=2)
    downs = [wanted[0].factors.down, wanted[0].factors.down * 3, wanted[1].factors.down]
    basis = span_basis(downs)
    assert basis.shape == (5, WIDTH)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(5, dtype=torch.float64))
    for down in downs:
        torch.testing.assert_close(down @ basis.mT @ basis, down)
