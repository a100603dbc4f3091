"""Halves put together: bit-equal parts, owners, strengths, and halves that don't fit."""

import math
from dataclasses import replace

import pytest
import torch
from pack.lora_ops import LowRank, delta, forward_delta
from pack.lora_ops.halves import check_halves, join_halves, join_layer, owned_part, partner_part
from pack.lora_ops.keys import factor_keys
from pack.lora_ops.parametrizations.partly_learnable import PartlyLearnable
from pack.training import lora_state
from partly_learnable import blocks
from torch import Tensor

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def waves(shape: tuple[int, int], shift: float) -> Tensor:
    """sin(shift + 0.7 k) in the order of rows."""
    count = math.prod(shape)
    return torch.sin(shift + 0.7 * torch.arange(count, dtype=torch.float64)).view(shape)


STYLE = LowRank(waves((2, 6), 0.9), waves((8, 2), 0.2))
CONTENT = LowRank(waves((2, 6), 2.6), waves((8, 2), 1.7))


def trained_half(seed: int, basis_seed: int = 5, rank: int = 3, shape=(10, 12)) -> LowRank:
    kind = PartlyLearnable(basis_seed)
    generator = torch.Generator().manual_seed(seed)
    parts = kind.init(shape, rank, generator, LAYER)
    parts["up"] = torch.randn(parts["up"].shape, generator=generator)
    return kind.factors(parts)


def test_content_columns_and_all_else_of_the_style_make_the_released_lora():
    made = join_layer(CONTENT, STYLE)
    assert torch.equal(made.up, STYLE.up)
    assert torch.equal(made.down[:, :3], STYLE.down[:, :3])
    assert torch.equal(made.down[:, 3:], CONTENT.down[:, 3:])
    expected = blocks(
        STYLE.up[:4].tolist(),
        STYLE.up[4:].tolist(),
        STYLE.down[:, :3].tolist(),
        CONTENT.down[:, 3:].tolist(),
    )
    torch.testing.assert_close(delta(made), torch.tensor(expected, dtype=torch.float64))


def test_owners_can_be_swapped():
    made = join_layer(CONTENT, STYLE, content_owns="up")
    assert torch.equal(made.up, CONTENT.up)
    assert torch.equal(made.down[:, :3], CONTENT.down[:, :3])
    assert torch.equal(made.down[:, 3:], STYLE.down[:, 3:])


@pytest.mark.parametrize("content_owns", ["down", "up"])
def test_strengths_scale_the_owned_parts_alone(content_owns):
    plain = join_layer(CONTENT, STYLE, content_owns)
    strong = join_layer(CONTENT, STYLE, content_owns, content_strength=2.0, style_strength=0.25)
    down, up = (2.0, 0.25) if content_owns == "down" else (0.25, 2.0)
    assert torch.equal(strong.down[:, :3], plain.down[:, :3])
    assert torch.equal(strong.up[:4], plain.up[:4])
    assert torch.equal(strong.down[:, 3:], down * plain.down[:, 3:])
    assert torch.equal(strong.up[4:], up * plain.up[4:])
    none = join_layer(CONTENT, STYLE, content_owns, content_strength=0.0)
    owned = none.down[:, 3:] if content_owns == "down" else none.up[4:]
    assert not owned.any()


def test_roles_own_one_part_each():
    assert owned_part("content") == partner_part("style") == "down"
    assert owned_part("style") == partner_part("content") == "up"
    assert owned_part("content", "up") == partner_part("style", "up") == "up"
    assert owned_part("style", "up") == partner_part("content", "up") == "down"
    with pytest.raises(ValueError, match="one of content and style, got 'both'"):
        owned_part("both")
    with pytest.raises(ValueError, match="one of down and up, got 'mid'"):
        owned_part("content", "mid")


def test_halves_of_one_basis_fit_and_the_result_is_an_ordinary_lora():
    content, style = trained_half(1), trained_half(2)
    made = join_halves({LAYER: content}, {LAYER: style})[LAYER]
    state, keys = lora_state({LAYER: made}, {}), factor_keys(LAYER)
    loaded = LowRank(state[keys.down], state[keys.up], state[keys.alpha].item())
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(forward_delta(x, loaded), x @ delta(made).T)
    assert loaded.scale == 1.0
    assert torch.equal(loaded.down[:, 6:], content.down[:, 6:])
    assert torch.equal(loaded.up[5:], style.up[5:])


def test_halves_rounded_on_disk_or_shrunk_by_the_released_decay_still_fit():
    content, style = trained_half(1), trained_half(2)
    rounded = LowRank(content.down.bfloat16(), content.up.bfloat16())
    check_halves({LAYER: rounded}, {LAYER: style})
    kept = (1 - 1e-4 * 1e-2) ** 9000
    check_halves({LAYER: LowRank(content.down * kept, content.up * kept)}, {LAYER: style})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({LAYER: trained_half(1, basis_seed=6)}, r"one basis, got frozen halves.*to_q"),
        ({LAYER: trained_half(1, rank=2)}, r"one rank, got 2 and 3 at layer .*to_q"),
        ({LAYER: trained_half(1, shape=(10, 14))}, r"one shape, got \(10, 14\) and \(10, 12\)"),
        ({"other": trained_half(1)}, r"same layers, got 1 and 1 of which 2 are in one alone"),
        ({LAYER: replace(trained_half(1), alpha=1.5)}, r"one scale, got 0.5 and 1.0"),
        ({LAYER: LowRank(torch.ones(3, 12), torch.zeros(10, 3))}, r"one basis"),
    ],
)
def test_halves_that_do_not_fit_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        join_halves(content, {LAYER: trained_half(2)})
