"""Guidance algebra against numbers worked out by hand."""

import pytest
import torch
from pack.lora_ops import cfg, style_guidance

UNCOND = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
COND = torch.tensor([0.4, 0.0, -0.1], dtype=torch.float64)
STYLE = torch.tensor([0.9, -0.5, 0.2], dtype=torch.float64)
OTHER = torch.tensor([-0.3, 0.6, 0.1], dtype=torch.float64)


def guided(cfg_scale, *styles, uncond=UNCOND):
    return style_guidance(cfg(uncond, COND, cfg_scale), COND, styles)


def close(found, wanted):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("style_scale", "wanted"),
    [(4.0, [3.6, -1.2, -0.5]), (0.0, [1.6, 0.8, -1.7]), (5.0, [4.1, -1.7, -0.2])],
)
def test_equation_10(style_scale, wanted):
    close(guided(5.0, (STYLE, style_scale)), wanted)


def test_both_scales_at_one_give_the_styled_prediction():
    close(guided(1.0, (STYLE, 1.0)), STYLE)


@pytest.mark.parametrize("cfg_scale", [1.0, 5.0, 7.5])
def test_negative_equal_to_the_prompt_drops_cfg(cfg_scale):
    close(guided(cfg_scale, (STYLE, 6.0), uncond=COND), [3.4, -3.0, 1.7])


def test_equation_11_has_coefficients_that_sum_to_one():
    found = guided(7.5, (STYLE, 4.5), (OTHER, 2.0))
    close(found, (1 - 7.5) * UNCOND + (7.5 - 4.5 - 2.0) * COND + 4.5 * STYLE + 2.0 * OTHER)
    shift = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    shifted = style_guidance(
        cfg(UNCOND + shift, COND + shift, 7.5),
        COND + shift,
        [(STYLE + shift, 4.5), (OTHER + shift, 2.0)],
    )
    close(shifted, found + shift)


def test_scale_of_zero_is_bit_equal():
    plain = cfg(UNCOND, COND, 5.0)
    assert guided(5.0, (STYLE, 0.0)).equal(plain)
    assert style_guidance(plain, COND, []) is plain


def test_a_tensor_scale_is_a_mask():
    mask = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    close(guided(5.0, (STYLE, 4.0 * mask)), torch.tensor([3.6, 0.8, -1.1], dtype=torch.float64))
