"""The objective of fusion without activations, and the arms that fusion is compared to."""

from dataclasses import replace

import pytest
import torch
from fusion_cases import (
    OUT,
    WIDTH,
    close,
    concepts,
    dense,
    fuse,
    golden_concepts,
    gram_lbfgs,
    rows_parts,
    whole,
)
from least_squares import squared_error
from pack.lora_ops import LowRank, delta
from pack.lora_ops.fusion import Fused, Target, fuse_from_gram, fuse_from_rows
from pack.lora_ops.fusion_objective import (
    concept_error,
    damped_objective,
    damping_at_norm,
    plain_average,
    weighted_error,
)
from pack.lora_ops.truncation import truncated


def test_objective_needs_no_activations():
    wanted, rows = concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    changes = [
        fuse(wanted, rows, damping=0.01).factors,
        plain_average(wanted),
        LowRank(torch.zeros(0, WIDTH).double(), torch.zeros(OUT, 0).double()),
    ]
    for factors in changes:
        change = delta(factors)
        errors = [squared_error(change, d, x) for d, x in zip(dense(wanted), rows, strict=True)]
        found = [concept_error(factors, one, x) for one, x in zip(wanted, rows, strict=True)]
        assert found == pytest.approx(errors, rel=1e-10)
        weighted = sum(w.weight * e for w, e in zip(wanted, errors, strict=True))
        assert weighted_error(factors, wanted, parts, total) == pytest.approx(weighted, rel=1e-10)


def test_no_change_misses_all_of_a_concept():
    wanted, rows = concepts()
    nothing = torch.zeros(OUT, WIDTH).double()
    for one, own, x in zip(wanted, dense(wanted), rows, strict=True):
        missed = squared_error(nothing, own, x)
        assert concept_error(None, one, x) == pytest.approx(missed, rel=1e-10)


@pytest.mark.parametrize("anchor", ["base", "average"])
def test_the_damped_objective_is_least_at_the_fused_change_and_grows_by_what_is_cut(anchor):
    wanted, rows = concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    fused = fuse_from_gram(wanted, parts, total, damping=0.01, anchor=anchor)

    def objective(factors):
        change = Fused(factors, fused.damping, fused.solver)
        return damped_objective(change, wanted, parts, total, anchor=anchor)

    found, change = objective(fused.factors), delta(fused.factors)
    away = change - (delta(plain_average(wanted)) if anchor == "average" else 0)
    errors = [squared_error(change, d, x) for d, x in zip(dense(wanted), rows, strict=True)]
    exact = sum(w.weight * e for w, e in zip(wanted, errors, strict=True))
    assert found == pytest.approx(exact + fused.damping * float(away.square().sum()), rel=1e-9)
    assert found < objective(plain_average(wanted))
    cut = truncated(fused.factors, total.matrix, damping=fused.damping, rank=3)
    if anchor == "base":
        assert objective(cut.factors) - found == pytest.approx(cut.loss, rel=1e-6)


def test_a_perfect_fit_misses_nothing_and_never_less():
    wanted, rows = golden_concepts()
    fused = fuse_from_rows(wanted, rows, damping=0.0)
    found = [concept_error(fused.factors, w, x) for w, x in zip(wanted, rows, strict=True)]
    assert all(0.0 <= value < 1e-13 for value in found)


def test_a_smaller_damping_fits_better_and_changes_more():
    wanted, rows = concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    fits, norms = [], []
    for damping in (1e-4, 1e-2, 1.0, 100.0):
        fused = fuse_from_gram(wanted, parts, total, damping=damping)
        fits.append(weighted_error(fused.factors, wanted, parts, total))
        norms.append(float(delta(fused.factors).norm()))
    assert fits == sorted(fits)
    assert norms == sorted(norms, reverse=True)


def test_the_comparison_arm_converges_to_the_closed_form():
    wanted, rows = concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    closed = fuse_from_gram(wanted, parts, total, damping=0.0)
    close(gram_lbfgs(wanted, parts, total, iterations=150), delta(closed.factors), rtol=1e-4)
    few = LowRank(torch.eye(WIDTH).double(), gram_lbfgs(wanted, parts, total, iterations=5))
    best = weighted_error(closed.factors, wanted, parts, total)
    nothing = LowRank(torch.zeros(0, WIDTH).double(), torch.zeros(OUT, 0).double())
    start = weighted_error(nothing, wanted, parts, total)
    assert best < weighted_error(few, wanted, parts, total) < start


def steep_concepts(width: int = 96) -> tuple[list[Target], list[torch.Tensor]]:
    """Inputs whose spectrum falls as a power of 1.6: the hardest of the recorded cases."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -1.6
    turn = torch.linalg.qr(draw(width, width)).Q
    rows = [draw(500, width) * spectrum @ turn.mT for _ in range(3)]
    return [Target(LowRank(draw(4, width), draw(64, 4))) for _ in rows], rows


def test_fp32_activations_serve_at_a_steep_spectrum():
    wanted, rows = steep_concepts()
    exact = fuse(wanted, rows, damping=1e-2)
    rounded = fuse(wanted, [x.float() for x in rows], damping=1e-2)
    # fp32 sums would leave 5e-4 here (methods/mix_of_show.md, section 2.4)
    close(rounded, delta(exact.factors), rtol=2e-4)


def test_no_change_of_that_norm_fits_better_than_the_damped_one():
    # A ridge solution is the optimum among all changes of its norm, the paper's included.
    wanted, rows = steep_concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    stopped = gram_lbfgs(wanted, parts, total, iterations=50)
    theirs = weighted_error(LowRank(torch.eye(96).double(), stopped), wanted, parts, total)
    norm = float(stopped.norm())
    fused = fuse(wanted, rows, damping=damping_at_norm(wanted, parts, total, norm))
    assert float(delta(fused.factors).norm()) == pytest.approx(norm, rel=1e-9)
    assert weighted_error(fused.factors, wanted, parts, total) <= theirs


def test_a_norm_beyond_the_undamped_change_needs_no_damping():
    wanted, rows = concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    norm = float(delta(fuse(wanted, rows, damping=0.0).factors).norm())
    assert damping_at_norm(wanted, parts, total, norm * 1.01) < 1e-11
    small = damping_at_norm(wanted, parts, total, norm * 0.01)
    found = delta(fuse(wanted, rows, damping=small).factors)
    assert float(found.norm()) == pytest.approx(norm * 0.01, rel=1e-9)


@pytest.mark.parametrize("beyond", [1.05, 2.5])
def test_a_norm_is_found_beyond_what_rounded_statistics_give_undamped(beyond):
    # Undamped leaves out directions that may be rounding; a damped change uses what they hold.
    wanted, rows = steep_concepts()
    rows = [x.float() for x in rows]
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    undamped = fuse(wanted, rows, damping=0.0)
    norm = beyond * float(delta(undamped.factors).norm())
    fused = fuse(wanted, rows, damping=damping_at_norm(wanted, parts, total, norm))
    assert fused.damping > 0
    assert float(delta(fused.factors).norm()) == pytest.approx(norm, rel=1e-6)
    left = [weighted_error(one.factors, wanted, parts, total) for one in (fused, undamped)]
    assert left[0] < left[1]


def test_a_norm_that_no_damping_reaches_gives_the_least_that_rounding_allows():
    wanted, rows = steep_concepts()
    parts, total = rows_parts(wanted, rows), whole(wanted, rows)
    rounded = replace(total, rounded=True)
    damping = damping_at_norm(wanted, parts, rounded, 1e9)
    largest = float(torch.linalg.eigvalsh(total.matrix)[-1])
    expected = torch.finfo(torch.float32).eps * largest / total.mean_eigenvalue
    assert damping == pytest.approx(expected, rel=1e-9)


def test_without_inputs_no_norm_asks_for_damping():
    wanted, rows = concepts()
    parts = [torch.zeros_like(part) for part in rows_parts(wanted, rows)]
    total = whole(wanted, rows)
    empty = replace(total, matrix=torch.zeros_like(total.matrix), energy=0.0)
    assert damping_at_norm(wanted, parts, empty, 1.0) == 0.0


def test_the_average_takes_a_share_of_ones_own():
    wanted, _ = concepts(count=2)
    own = 0.6 * sum(dense(wanted))
    close(delta(plain_average(wanted, multiplier=0.6)), own)
