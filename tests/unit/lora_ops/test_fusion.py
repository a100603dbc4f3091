"""The closed form of gradient fusion against dense least squares, golden numbers, invariants."""

import pytest
import torch
from fusion_cases import (
    OUT,
    WIDTH,
    added,
    close,
    concepts,
    dense,
    fuse,
    golden_concepts,
    gram_of,
    oracle,
    projected,
    rows_parts,
    sum_of,
    two_sines,
)
from least_squares import squared_error, wave
from pack.lora_ops import LowRank, delta
from pack.lora_ops.fusion import (
    STAGE_DAMPING,
    Target,
    expanded,
    fuse_from_gram,
    fuse_from_rows,
    span_basis,
    statistics_of_rows,
    within_span,
)
from pack.lora_ops.fusion_objective import plain_average
from pack.lora_ops.gram import Gram, GramStream, ProjectedStream


# F1: methods/mix_of_show.md, section 5, found with the authors' solver; 6 printed digits.
@pytest.mark.parametrize("fused_by", ["gram", "rows"])
@pytest.mark.parametrize(
    ("damping", "corner", "total", "norm", "mse"),
    [
        (0.0, (-0.051384, -0.033318, -0.025969), 0.624401, 1.019736, 0.0),
        (0.01, (-0.049935, -0.033071, -0.026629), 0.618726, 1.008495, 1.129910e-5),
    ],
)
def test_golden_with_fewer_rows_than_the_width(fused_by, damping, corner, total, norm, mse):
    wanted, rows = golden_concepts()
    if fused_by == "gram":
        fused = fuse(wanted, rows, damping=damping)
    else:
        fused = fuse_from_rows(wanted, rows, damping=damping)
    change = delta(fused.factors)
    assert change[0, :3].tolist() == pytest.approx(corner, abs=6e-7)
    assert float(change.sum()) == pytest.approx(total, abs=6e-7)
    assert float(change.norm()) == pytest.approx(norm, abs=6e-7)
    errors = [squared_error(change, d, x) for d, x in zip(dense(wanted), rows, strict=True)]
    limit = 1e-28 if fused_by == "rows" else 1e-20  # a Gram matrix holds half of the digits
    assert sum(errors) / (6 * OUT) == pytest.approx(mse, rel=1e-6, abs=limit)


def test_golden_of_the_plain_average():
    wanted, rows = golden_concepts()
    change = delta(plain_average(wanted))
    assert float(change.norm()) == pytest.approx(0.992369, abs=6e-7)
    errors = [squared_error(change, d, x) for d, x in zip(dense(wanted), rows, strict=True)]
    assert sum(errors) / (6 * OUT) == pytest.approx(0.1742133, rel=1e-6)


@pytest.mark.parametrize("anchor", ["base", "average"])
@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("make", [two_sines, concepts, golden_concepts])
def test_equals_dense_least_squares(make, damping, anchor):
    wanted, rows = make()
    found = fuse(wanted, rows, damping=damping, anchor=anchor)
    wished = oracle(wanted, rows, relative_damping=damping, average=anchor == "average")
    close(found, wished)
    assert found.factors.rank == sum(one.factors.rank for one in wanted)


@pytest.mark.parametrize("anchor", ["base", "average"])
@pytest.mark.parametrize("damping", [0.0, 1e-6, 0.01, 100.0])
def test_few_rows_and_gram_agree(damping, anchor):
    wanted, rows = concepts(row_count=3)
    prior = wave(2, WIDTH, rate=0.9, phase=0.1)
    grams = [gram_of(x) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(wanted, grams, strict=True)]
    total = added(sum_of(grams, wanted), gram_of(prior))
    primal = fuse_from_gram(wanted, parts, total, damping=damping, anchor=anchor)
    dual = fuse_from_rows(wanted, rows, damping=damping, anchor=anchor, prior=prior)
    assert dual.damping == pytest.approx(primal.damping)
    close(dual, delta(primal.factors), rtol=1e-6)
    wished = oracle(
        wanted, rows, relative_damping=damping, average=anchor == "average", prior=prior
    )
    close(dual, wished)


def test_rows_that_coincide_are_shared_fairly():
    # "photo of a" begins both prompts: the concepts contradict each other there.
    wanted, rows = concepts(count=2, row_count=3)
    rows[1][0] = rows[0][0]
    close(fuse_from_rows(wanted, rows, damping=0.0), oracle(wanted, rows))


def test_rows_that_coincide_but_for_rounding_count_as_one():
    wanted, rows = concepts(count=2, row_count=3)
    rows[1][0] = rows[0][0] * (1 + 1e-7)
    rows = [x.float() for x in rows]
    change = delta(fuse_from_rows(wanted, rows, damping=0.0).factors)
    assert float(change.norm()) < 10 * sum(float(own.norm()) for own in dense(wanted))


@pytest.mark.parametrize("row_count", [3, 20])
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_concepts_count_alike_however_many_rows_they_have(row_count, damping):
    wanted, rows = concepts(count=2, row_count=row_count)
    prior = wave(2, WIDTH, rate=0.9, phase=0.1)
    found = fuse_from_rows(wanted, rows, damping=damping, prior=prior, even=True)
    means = [x / len(x) ** 0.5 for x in rows]
    wished = oracle(wanted, means, relative_damping=damping, prior=prior / 2**0.5)
    close(found, wished, rtol=1e-7)
    total, parts = statistics_of_rows(wanted, rows, prior=prior, even=True)
    close(fuse_from_gram(wanted, parts, total, damping=damping), wished, rtol=1e-6)
    matrix = sum(w.weight * x.mT @ x for w, x in zip(wanted, means, strict=True))
    torch.testing.assert_close(total.matrix, matrix + prior.mT @ prior / 2)
    assert (total.energy, total.width) == (pytest.approx(float(total.matrix.trace())), WIDTH)


def wide_concepts(generator, width=768, count=100):
    """Three concepts of fp32 rows, fewer of them together than the layer is wide."""
    wanted, rows = [], []
    for _ in range(3):
        down = torch.randn(4, width, generator=generator).double() / width**0.5
        wanted.append(Target(LowRank(down, torch.randn(8, 4, generator=generator).double())))
        rows.append(torch.randn(count, width, generator=generator))
    return wanted, rows


@pytest.mark.parametrize("shared", [False, True])
def test_without_damping_rounded_statistics_give_the_least_change(shared):
    """Rounding of fp32 products is no input to be served, and of fp32 rows no other input."""
    wanted, rows = wide_concepts(torch.Generator().manual_seed(3))
    if shared:
        rows[1][0] = rows[0][0] * (1 + 1e-6)
    exact = [x.double() for x in rows]
    if shared:
        exact[1][0] = exact[0][0]
    limit = 2 * float(oracle(wanted, exact).norm())
    stream, parts = GramStream(768), []
    for one, x in zip(wanted, rows, strict=True):
        stream.add(x, label="rows")
        own = ProjectedStream({"layer": one.factors.down}, width=768)
        own.add(x, label="rows")
        parts.append(own.total()["layer"])
    assert stream.total().rounded
    fused = fuse_from_gram(wanted, parts, stream.total(), damping=0.0)
    assert float(delta(fused.factors).norm()) < limit
    fused = fuse_from_rows(wanted, rows, damping=0.0, even=True)
    assert float(delta(fused.factors).norm()) < limit


# F3, methods/mix_of_show.md, section 5
def test_one_concept_alone_is_returned():
    wanted, rows = concepts(count=1)
    close(fuse(wanted, rows, damping=0.0), dense(wanted)[0])


def test_identical_concepts_give_that_concept():
    (one, *_), (x, *_) = concepts()
    close(fuse([one, one, one], [x, x, x], damping=0.0), dense([one])[0])


def test_concepts_on_orthogonal_inputs_do_not_disturb_each_other():
    wanted, rows = concepts(count=2)
    basis = torch.linalg.qr(wave(WIDTH, WIDTH, rate=1.1, phase=0.4) + torch.eye(WIDTH)).Q
    rows = [rows[0][:, :5] @ basis[:5], rows[1][:, 5:] @ basis[5:]]
    change = delta(fuse(wanted, rows, damping=0.0).factors)
    for x, own in zip(rows, dense(wanted), strict=True):
        torch.testing.assert_close(x @ change.mT, x @ own.mT)


def test_the_order_of_concepts_does_not_matter():
    wanted, rows = concepts()
    forward = fuse(wanted, rows, damping=0.01, anchor="average")
    backward = fuse(wanted[::-1], rows[::-1], damping=0.01, anchor="average")
    close(backward, delta(forward.factors))


def test_doubling_every_row_changes_nothing():
    wanted, rows = concepts()
    once = fuse(wanted, rows, damping=0.01)
    twice = fuse(wanted, [torch.cat([x, x]) for x in rows], damping=0.01)
    close(twice, delta(once.factors))
    assert twice.damping == pytest.approx(2 * once.damping)


def test_infinite_damping_is_the_anchor():
    wanted, rows = concepts()
    assert float(delta(fuse(wanted, rows, damping=1e12).factors).norm()) < 1e-9
    close(fuse(wanted, rows, damping=1e12, anchor="average"), delta(plain_average(wanted)))


def test_streaming_concept_after_concept_gives_the_same_fusion():
    wanted, rows = concepts()
    stream = GramStream(WIDTH)
    for one, x in zip(wanted, rows, strict=True):
        for chunk in x.split(3):
            stream.add(chunk, label="chunk", weight=one.weight)
    parts = [projected(w.factors.down, gram_of(x)) for w, x in zip(wanted, rows, strict=True)]
    found = fuse_from_gram(wanted, parts, stream.total(), damping=0.01)
    close(found, delta(fuse(wanted, rows, damping=0.01).factors))


# more than the invariants
def test_removing_a_concept_is_fusing_without_it():
    wanted, rows = concepts()
    grams = [gram_of(x) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(wanted, grams, strict=True)]
    less = added(sum_of(grams, wanted), grams[1], -wanted[1].weight)
    found = fuse_from_gram([wanted[0], wanted[2]], [parts[0], parts[2]], less, damping=0.01)
    close(found, delta(fuse([wanted[0], wanted[2]], [rows[0], rows[2]], damping=0.01).factors))


def test_a_weight_of_zero_leaves_a_concept_out():
    wanted, rows = concepts(count=2)
    silent = Target(wanted[1].factors, weight=0.0)
    found = fuse([wanted[0], silent], rows, damping=0.01, anchor="average")
    close(found, oracle([wanted[0]], rows[:1], relative_damping=0.01, average=True))
    assert found.factors.rank == wanted[0].factors.rank


def test_a_concept_without_the_layer_keeps_it_as_it_is():
    wanted, rows = concepts(count=2)
    empty = LowRank(torch.zeros(0, WIDTH).double(), torch.zeros(OUT, 0).double())
    wanted[1] = Target(empty, weight=2.0)
    for anchor in ("base", "average"):
        found = fuse(wanted, rows, damping=0.01, anchor=anchor)
        close(found, oracle(wanted, rows, relative_damping=0.01, average=anchor == "average"))
        assert found.factors.rank == wanted[0].factors.rank


def test_concepts_that_all_leave_the_layer_alone_fuse_to_nothing():
    empty = LowRank(torch.zeros(0, WIDTH).double(), torch.zeros(OUT, 0).double())
    _, rows = concepts(count=2)
    for damping in (0.0, 0.01):
        found = fuse([Target(empty)] * 2, rows, damping=damping)
        assert delta(found.factors).equal(torch.zeros(OUT, WIDTH).double())
        found = fuse_from_rows([Target(empty)] * 2, rows, damping=damping)
        assert delta(found.factors).equal(torch.zeros(OUT, WIDTH).double())


def test_prior_rows_are_left_alone():
    wanted, rows = concepts()
    prior = wave(40, WIDTH, rate=2.3, phase=0.1)
    grams = [gram_of(x) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(wanted, grams, strict=True)]
    changes = []
    for weight in (0.0, 1.0, 1e6):
        total = added(sum_of(grams, wanted), gram_of(prior, weight=weight))
        changes.append(delta(fuse_from_gram(wanted, parts, total, damping=0.01).factors))
    close(changes[1], oracle(wanted, rows, relative_damping=0.01, prior=prior))
    effects = [float((prior @ change.mT).norm()) for change in changes]
    assert effects[0] > effects[1] > effects[2]


def test_a_convolution_is_fused_over_its_patches():
    wanted, rows = concepts()
    shaped = [
        Target(
            LowRank(one.factors.down.view(-1, 3, 2, 2), one.factors.up[..., None, None], 1.5),
            one.strength,
            one.weight,
        )
        for one in wanted
    ]
    found = fuse_from_rows(shaped, rows, damping=0.01, anchor="average")
    assert found.factors.shape == (OUT, 3, 2, 2)
    assert found.factors.up.shape == (OUT, 9, 1, 1)
    flat = fuse_from_rows(wanted, rows, damping=0.01, anchor="average")
    close(delta(found.factors).flatten(1), delta(flat.factors))
    basis = span_basis([one.factors.down for one in shaped])
    assert basis.shape == (9, WIDTH)
    inside = [within_span(one, basis) for one in shaped]
    grams = [gram_of(x, span=basis) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(inside, grams, strict=True)]
    total = sum_of(grams, inside)
    assert expanded(
        fuse_from_gram(inside, parts, total, damping=0.01), basis, (OUT, 3, 2, 2)
    ).factors.shape == (OUT, 3, 2, 2)


def test_a_singular_gram_falls_back_to_eigenvalues_and_says_so():
    wanted, rows = golden_concepts()
    assert fuse(wanted, rows, damping=0.01).solver == "cholesky"
    assert fuse(wanted, rows, damping=0.0).solver == "eigenvalues"


def test_an_eigenvalue_below_zero_counts_as_zero():
    # Rounding of fp32 products can leave one.
    wanted, rows = concepts()
    parts = rows_parts(wanted, rows)
    values = torch.linspace(1.0, 0.5, WIDTH, dtype=torch.float64)
    basis = torch.linalg.qr(wave(WIDTH, WIDTH, rate=1.1, phase=0.4) + torch.eye(WIDTH)).Q
    found = []
    for last in (0.0, -1e-3):
        values[-1] = last
        gram = Gram(basis * values @ basis.mT, 60, 8.0, WIDTH)
        found.append(fuse_from_gram(wanted, parts, gram, damping=1e-4))
    assert [fused.solver for fused in found] == ["cholesky", "eigenvalues"]
    close(found[1], delta(found[0].factors))


# bad input
def test_damping_by_stage():
    assert set(STAGE_DAMPING) == {"text", "cross", "spatial"}
    assert all(0 < value <= 0.1 for value in STAGE_DAMPING.values())


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf")])
def test_a_bad_damping_is_refused(damping):
    wanted, rows = concepts()
    with pytest.raises(ValueError, match="damping must be 0 or a positive number, got"):
        fuse(wanted, rows, damping=damping)
    with pytest.raises(ValueError, match="damping must be 0 or a positive number, got"):
        fuse_from_rows(wanted, rows, damping=damping)


def test_a_bad_weight_or_strength_is_refused():
    factors = concepts()[0][0].factors
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight must be 0 or a positive number, got"):
            Target(factors, weight=weight)
    with pytest.raises(ValueError, match="strength must be a finite number, got nan"):
        Target(factors, strength=float("nan"))


def test_nothing_to_fuse_is_refused():
    (one, *_), (x, *_) = concepts()
    with pytest.raises(ValueError, match="at least one concept must have a weight above 0"):
        fuse([Target(one.factors, weight=0.0)], [x], damping=0.1)
    with pytest.raises(ValueError, match="at least one concept"):
        fuse_from_rows([], [], damping=0.1)


def test_layers_of_another_shape_are_refused():
    wanted, rows = concepts(count=2)
    other = Target(LowRank(torch.zeros(1, WIDTH).double(), torch.zeros(7, 1).double()))
    with pytest.raises(ValueError, match=r"same layer, got shapes \(5, 12\) and \(7, 12\)"):
        fuse([wanted[0], other], rows, damping=0.1)
    with pytest.raises(ValueError, match=r"one .+ for each concept, got 1 for 2"):
        fuse_from_rows(wanted, rows[:1], damping=0.1)
    with pytest.raises(ValueError, match='anchor must be "base" or "average", got "mean"'):
        fuse(wanted, rows, damping=0.1, anchor="mean")
