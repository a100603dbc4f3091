"""Statistics of a layer's inputs: streamed, merged, taken away again."""

import pytest
import torch
from least_squares import wave
from pack.lora_ops.gram import Gram, GramStream, ProjectedStream
from pack.lora_ops.row_sample import RowSample

ROWS = wave(37, 12, rate=0.77, phase=0.3)
DOWN = wave(3, 12, rate=1.7, phase=0.5)


def streamed(*chunks: torch.Tensor, width: int = 12, **settings) -> Gram:
    stream = GramStream(width, **settings)
    for chunk in chunks:
        stream.add(chunk, label="a test's rows")
    return stream.total()


@pytest.mark.parametrize("sizes", [(37,), (1, 36), (5,) * 7 + (2,), (1,) * 37, (0, 37)])
@pytest.mark.parametrize("chunk_rows", [4, 4096])
def test_any_chunking_gives_the_same_gram(sizes, chunk_rows, monkeypatch):
    monkeypatch.setattr("pack.lora_ops.gram.CHUNK_ROWS", chunk_rows)
    found = streamed(*ROWS.split(sizes))
    torch.testing.assert_close(found.matrix, ROWS.mT @ ROWS, rtol=1e-12, atol=1e-12)
    assert found.rows == 37
    assert found.energy == pytest.approx(float((ROWS**2).sum()), rel=1e-12)


def test_leading_axes_are_rows():
    found = streamed(ROWS[:36].view(2, 3, 6, 12))
    torch.testing.assert_close(found.matrix, ROWS[:36].mT @ ROWS[:36])
    assert found.rows == 36


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_products_of_half_precision_are_fp32_and_sums_fp64(dtype):
    rows = torch.randn(9000, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = streamed(rows)
    assert found.matrix.dtype == torch.float64
    exact = rows.double().mT @ rows.double()
    # fp32 within a chunk of 4,096 rows, fp64 between chunks
    assert float((found.matrix - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_is_never_used_and_the_users_choice_is_kept(precision):
    rows = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    plain = streamed(rows, width=64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = streamed(rows, width=64)
            assert (rows @ rows.mT).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.matrix.equal(plain.matrix)


def test_a_weight_scales_the_statistics_but_not_the_count():
    stream = GramStream(12)
    stream.add(ROWS[:20], label="one")
    stream.add(ROWS[20:], label="two", weight=0.25)
    wanted = ROWS[:20].mT @ ROWS[:20] + 0.25 * ROWS[20:].mT @ ROWS[20:]
    torch.testing.assert_close(stream.total().matrix, wanted)
    assert stream.total().energy == pytest.approx(float(wanted.trace()))
    assert stream.total().mean_eigenvalue == pytest.approx(float(wanted.trace()) / 12)
    assert stream.total().rows == 37


def test_a_total_is_not_changed_by_later_rows():
    stream = GramStream(12)
    stream.add(ROWS[:20], label="one")
    total = stream.total()
    kept = total.matrix.clone()
    stream.add(ROWS[20:], label="two")
    assert total.matrix.equal(kept)


def test_rows_of_an_inference_run_are_counted():
    stream = GramStream(12)
    with torch.inference_mode():
        stream.add(ROWS * 1.0, label="one")
    stream.add(ROWS.clone().requires_grad_(), label="two")
    total = stream.total().matrix
    torch.testing.assert_close(total, 2 * ROWS.mT @ ROWS)
    assert not total.requires_grad


def test_projected_statistics_are_the_factor_times_the_gram():
    stream = ProjectedStream({"q": DOWN, "k": DOWN[:1]}, width=12)
    for chunk in ROWS.split(10):
        stream.add(chunk.view(1, -1, 12), label="rows")
    gram = ROWS.mT @ ROWS
    total = stream.total()
    torch.testing.assert_close(total["q"], DOWN @ gram)
    torch.testing.assert_close(total["k"], DOWN[:1] @ gram)


def test_statistics_within_a_span_keep_the_energy_of_the_whole():
    span = torch.linalg.qr(DOWN.mT).Q.mT
    found = streamed(ROWS, span=span)
    torch.testing.assert_close(found.matrix, span @ ROWS.mT @ ROWS @ span.mT)
    assert found.energy == pytest.approx(float((ROWS**2).sum()), rel=1e-6)
    assert found.mean_eigenvalue == pytest.approx(float((ROWS**2).sum()) / 12, rel=1e-6)


def test_statistics_are_narrowed_to_a_span_that_theirs_holds():
    wide = torch.linalg.qr(wave(12, 6, rate=0.9, phase=0.2)).Q.mT
    narrow = (torch.linalg.qr(wave(6, 4, rate=1.3, phase=0.1)).Q.mT @ wide).contiguous()
    exact = streamed(ROWS, span=narrow)
    for start in (streamed(ROWS), streamed(ROWS, span=wide), exact):
        found = start.within(narrow)
        torch.testing.assert_close(found.matrix, exact.matrix)
        assert found.energy == pytest.approx(exact.energy)
        assert found.span.equal(narrow)
    assert exact.within(narrow) is exact
    stream = GramStream(12, span=narrow)
    stream.merge(streamed(ROWS, span=wide), weight=0.5)
    torch.testing.assert_close(stream.total().matrix, 0.5 * exact.matrix)
    for other in (wide, None):
        with pytest.raises(ValueError, match="a span that theirs holds alone"):
            exact.within(other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_activation_is_refused_by_name_and_nothing_is_counted(bad):
    rows = ROWS.clone()
    rows[30, 4] = bad
    stream = GramStream(12)
    stream.add(ROWS, label="fine")
    before = stream.total()
    says = 'layer "mid.q", prompt "a cat" must be finite'
    with pytest.raises(ValueError, match=says) as caught:
        stream.add(rows, label='layer "mid.q", prompt "a cat"')
    assert "\n" not in str(caught.value)
    assert stream.total().matrix.equal(before.matrix)
    assert stream.total().rows == before.rows
    with pytest.raises(ValueError, match=says):
        ProjectedStream({"q": DOWN}, width=12).add(rows, label='layer "mid.q", prompt "a cat"')


def test_a_layer_of_another_width_is_refused_by_name():
    with pytest.raises(ValueError, match=r"down\.q must have 12 columns, got \(5, 7\)"):
        GramStream(12).add(torch.zeros(5, 7), label="down.q")


def test_a_sum_goes_on_from_an_earlier_one_and_takes_rows_away():
    stream = GramStream(12, start=streamed(ROWS[:20]))
    stream.add(ROWS[20:], label="the rest")
    torch.testing.assert_close(stream.total().matrix, streamed(ROWS).matrix)
    stream.add(ROWS[:20], label="the first", weight=-1.0)
    torch.testing.assert_close(stream.total().matrix, streamed(ROWS[20:]).matrix, atol=1e-6, rtol=0)
    assert stream.total().rows == 17
    stream.merge(streamed(ROWS[:20]), weight=-1.0)
    assert stream.total().rows == -3  # of rows that were never in it
    stream.merge(streamed(ROWS[:20]))
    stream.merge(streamed(ROWS[:20]))
    torch.testing.assert_close(stream.total().matrix, streamed(ROWS).matrix, atol=1e-6, rtol=0)
    assert stream.total().rows == 37


def test_a_sample_of_rows_tells_how_large_they_are():
    rows = torch.randn(4000, 12, generator=torch.Generator().manual_seed(1))
    sample = RowSample(200, calls=4, generator=torch.Generator().manual_seed(2))
    for part in rows.split(1000):
        sample.add(part)
    kept = sample.total()
    assert kept.shape == (200, 12)
    assert all((rows == row).all(1).any() for row in kept)
    assert kept.square().mean() == pytest.approx(float(rows.square().mean()), rel=0.1)
    many = RowSample(20, calls=50, generator=torch.Generator().manual_seed(2))
    for part in rows.split(80):
        many.add(part)
    assert many.total().shape == (20, 12)
    few = RowSample(200, calls=4, generator=torch.Generator().manual_seed(2))
    few.add(rows[:7])
    assert few.total().equal(rows[:7])
