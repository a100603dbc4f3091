"""How an ordinary LoRA begins."""

import pytest
import torch
from pack.lora_ops import Plain

SHAPE, RANK = (64, 900), 4


def down(start: str) -> torch.Tensor:
    return Plain(start).init(SHAPE, RANK, torch.Generator().manual_seed(0))["down"]


def test_uniform_stays_within_one_over_the_root_of_the_inputs():
    found = down("uniform")
    assert found.abs().max() <= 900**-0.5
    assert found.std() == pytest.approx(900**-0.5 / 3**0.5, rel=0.05)
    assert torch.equal(found, Plain().init(SHAPE, RANK, torch.Generator().manual_seed(0))["down"])


def test_normal_has_a_spread_of_one_over_the_rank():
    assert down("normal").std() == pytest.approx(1 / RANK, rel=0.05)


def test_another_start_is_refused():
    with pytest.raises(ValueError, match="start must be one of uniform and normal, got 'zero'"):
        Plain("zero")
