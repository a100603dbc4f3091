"""Orthonormal bases: published values, disjointness, thin QR."""

import pytest
import torch
from pack.lora_ops import disjoint_bases, orthonormal_rows
from pack.lora_ops.bases import THIN_ABOVE
from pack.lora_ops.parametrizations.orthogonal_pair import RELEASED_BASIS_SEED

# First four numbers of row 0 and of row 64, last number of row 127 of the released SDXL bases,
# recomputed from the published seed and formula.
RELEASED = {
    640: (
        (-0.031719, 0.019346, -0.010428, 0.049973),
        (0.045048, 0.071405, 0.029574, 0.050803),
        0.014947,
    ),
    1280: (
        (-0.021950, 0.013544, -0.006544, 0.036679),
        (-0.023450, -0.033598, -0.008840, 0.010903),
        -0.022331,
    ),
    2048: (
        (-0.017089, -0.010715, 0.005543, -0.030068),
        (-0.003516, 0.019477, 0.044767, -0.017104),
        -0.002864,
    ),
}


@pytest.mark.parametrize("width", RELEASED)
def test_rows_equal_the_released_bases(width):
    content, style = disjoint_bases(width, 64, 64, RELEASED_BASIS_SEED)
    first, middle, last = RELEASED[width]
    torch.testing.assert_close(content[0, :4], torch.tensor(first), atol=1e-5, rtol=0)
    torch.testing.assert_close(style[0, :4], torch.tensor(middle), atol=1e-5, rtol=0)
    assert style[63, -1].item() == pytest.approx(last, abs=1e-5)
    assert (content @ content.T - torch.eye(64)).abs().max() < 1e-5
    assert (style @ style.T - torch.eye(64)).abs().max() < 1e-5
    assert (content @ style.T).abs().max() < 1e-6


def test_thin_rows_are_orthonormal_and_disjoint():
    content, style = disjoint_bases(THIN_ABOVE + 904, 8, 8, seed=42)
    both = torch.cat([content, style])
    assert both.shape == (16, THIN_ABOVE + 904)
    assert (both @ both.T - torch.eye(16)).abs().max() < 1e-5


def test_rows_depend_on_width_and_seed_alone():
    before = torch.get_rng_state()
    again = orthonormal_rows(32, 4, seed=5)
    assert torch.equal(again, orthonormal_rows(32, 4, seed=5))
    assert torch.equal(again, orthonormal_rows(32, 12, seed=5)[:4])
    assert not torch.equal(again, orthonormal_rows(32, 4, seed=6))
    assert torch.equal(before, torch.get_rng_state())


def test_more_rows_than_the_width_holds_are_refused():
    with pytest.raises(ValueError, match="got 9 rows for width 8; lower the rank"):
        orthonormal_rows(8, 9, seed=0)
