"""Break-for-Make's projections: bases from names alone, what the starts promise, refusals."""

import pytest
import torch
from pack.lora_ops import LowRank, delta
from pack.lora_ops.parametrizations.partly_learnable import (
    STARTS,
    PartlyLearnable,
    basis_digest,
    frozen_halves,
    split,
)
from pack.training import Site
from pack.training.adapters import new_adapter
from partly_learnable import blocks
from torch import Tensor, nn

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
OUT = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
SHAPES = [(16, 16), (12, 40), (30, 8), (8, 6, 3, 3)]


def parts_of(start: str, shape: tuple[int, ...], rank: int = 3, site: str = QUERY, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return PartlyLearnable(5, start).init(shape, rank, generator, site)


def overlaps(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    down, up = down.flatten(1).double(), up.flatten(1).double()
    return down @ down.T, up.T @ up


@pytest.mark.parametrize("shape", SHAPES)
def test_the_orthogonal_halves_are_rows_of_one_orthonormal_matrix(shape):
    down, up = frozen_halves(QUERY, shape, 3, 5, "orthogonal")
    of_down, of_up = overlaps(down, up)
    torch.testing.assert_close(of_down + of_up, torch.eye(3).double(), atol=1e-6, rtol=0)
    product = (up.flatten(1) @ down.flatten(1)).square().sum().double()
    expected = of_up.trace() - (of_up @ of_up).trace()
    torch.testing.assert_close(product, expected, atol=1e-6, rtol=1e-5)
    assert product > 0.01


def test_the_released_halves_are_orthonormal_in_square_query_key_and_value_layers():
    down, up = frozen_halves(QUERY, (1280, 1280), 8, 0, "released")
    of_down, of_up = overlaps(down, up)
    torch.testing.assert_close(of_down + of_up, torch.eye(8).double(), atol=1e-6, rtol=0)
    of_down, of_up = overlaps(*frozen_halves(QUERY, (640, 640), 8, 0, "released"))
    most = torch.linalg.eigvalsh(of_down + of_up)
    assert most.max() < 1  # 640 of 1,280 rows
    assert most.min() > 0.2
    wide = frozen_halves(QUERY, (1536, 1536), 8, 0, "released")  # ends the released run
    assert wide[0].shape == (8, 768)


@pytest.mark.parametrize(("site", "shape"), [(OUT, (64, 64)), (QUERY, (64, 96))])
def test_the_released_up_half_is_zero_everywhere_else(site, shape):
    parts = parts_of("released", shape, 4, site)
    assert not parts["up_frozen"].any()
    assert parts["down_frozen"].std() == pytest.approx(1 / 4, rel=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_start_is_the_base_and_both_halves_can_learn(shape):
    parts = {name: part.double() for name, part in parts_of("exact", shape).items()}
    up, down = parts["up_frozen"].flatten(1), parts["down_frozen"].flatten(1)
    assert not (up @ down).any()
    learnt = [parts["down"].requires_grad_(), parts["up"].requires_grad_()]
    change = delta(PartlyLearnable().factors(parts))
    assert not change.any()
    weights = torch.randn(
        change.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for gradient in torch.autograd.grad((change * weights).sum(), learnt):
        assert gradient.norm() > 0.1


@pytest.mark.parametrize("start", STARTS)
def test_only_exact_says_that_it_starts_at_the_base(start):
    change = delta(PartlyLearnable().factors(parts_of(start, (16, 16))))
    assert PartlyLearnable(5, start).starts_at_base is not bool(change.any())


@pytest.mark.parametrize("start", STARTS)
def test_the_change_is_the_four_blocks(start):
    parts = {name: part.double() for name, part in parts_of(start, (10, 12)).items()}
    parts["up"] = parts["up"] + torch.linspace(-1, 1, 15).double().view(5, 3)
    names = ("up_frozen", "up", "down_frozen", "down")
    expected = torch.tensor(blocks(*(parts[name].tolist() for name in names)))
    change = delta(PartlyLearnable().factors(parts))
    torch.testing.assert_close(change, expected.double(), atol=1e-12, rtol=1e-7)


@pytest.mark.parametrize("start", STARTS)
def test_frozen_halves_depend_on_name_shape_rank_and_seed_alone(start):
    def drawn(site=QUERY, shape=(16, 16), rank=3, seed=5):
        return frozen_halves(site, shape, rank, seed, start)[0]

    before = torch.get_rng_state()
    assert torch.equal(drawn(), drawn())
    assert torch.equal(before, torch.get_rng_state())
    others = [drawn(site="x_attn2_to_q"), drawn(seed=6), drawn(shape=(16, 18)), drawn(rank=4)]
    for other in others:
        assert other.shape != drawn().shape or not torch.equal(other, drawn())


def test_runs_of_other_days_names_and_seeds_share_the_frozen_halves():
    sites = {
        name: Site(nn.Linear(16, 16, bias=False).requires_grad_(False), (16, 16))
        for name in (QUERY, OUT)
    }
    cpu = torch.device("cpu")
    content = new_adapter("content", PartlyLearnable(5), sites, 3, 1, cpu)
    style = new_adapter("style", PartlyLearnable(5), sites, 3, 2, cpu)
    for site in sites:
        ours, other = content.parts[site], style.parts[site]
        for part in ("down_frozen", "up_frozen"):
            assert torch.equal(ours[part], other[part])
            assert not isinstance(ours[part], nn.Parameter)
        assert not torch.equal(ours["down"], other["down"])
    assert not torch.equal(content.parts[QUERY]["down_frozen"], content.parts[OUT]["down_frozen"])
    assert len(list(content.parameters())) == 4


def test_given_halves_are_taken_up_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    given = {QUERY: LowRank(torch.randn(3, 16, generator=generator),
                            torch.randn(14, 3, generator=generator))}  # fmt: skip
    site = Site(nn.Linear(16, 14, bias=False).requires_grad_(False), (14, 16))
    kind = PartlyLearnable(given=given)
    adapter = new_adapter("lora", kind, {QUERY: site}, 3, 9, torch.device("cpu"))
    assert not kind.starts_at_base
    result = adapter.result()[QUERY]
    assert torch.equal(result.down, given[QUERY].down)
    assert torch.equal(result.up, given[QUERY].up)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    assert given[QUERY].down.all()  # training never reaches what was given
    with pytest.raises(ValueError, match=r"every layer that is trained, got none.*to_out_0"):
        new_adapter("lora", kind, {OUT: site}, 3, 9, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"shape \(14, 16\), rank 2 and scale 1, got .*, 3 and 1"):
        new_adapter("lora", kind, {QUERY: site}, 2, 9, torch.device("cpu"))


def test_splitting_undoes_putting_together():
    parts = parts_of("orthogonal", (11, 9))
    again = split(PartlyLearnable().factors(parts))
    assert parts.keys() == again.keys()
    for name, part in parts.items():
        assert torch.equal(part, again[name])
    assert parts["up_frozen"].shape == (5, 3)
    assert parts["up"].shape == (6, 3)
    assert parts["down_frozen"].shape == (3, 4)


def test_a_rank_above_half_the_smaller_side_is_refused():
    with pytest.raises(ValueError, match=r"got rank 5 for a smaller side of 8; set rank to 4"):
        parts_of("orthogonal", (8, 30), 5)
    assert parts_of("orthogonal", (8, 30), 4)
    with pytest.raises(
        ValueError, match="one of orthogonal, released, exact, gaussian, got 'zero'"
    ):
        PartlyLearnable(start="zero")
    with pytest.raises(ValueError, match="at least 2, got 1; raise rank"):
        parts_of("exact", (8, 30), 1)


def test_a_digest_names_a_whole_set_of_bases():
    shapes = {"a": (8, 8), "b": (8, 16)}
    name = basis_digest(shapes, 2, 5, "orthogonal")
    assert len(name) == 16
    assert name == basis_digest(dict(reversed(shapes.items())), 2, 5, "orthogonal")
    others = [
        basis_digest({"a": (8, 8)}, 2, 5, "orthogonal"),
        basis_digest({"a": (8, 8), "c": (8, 16)}, 2, 5, "orthogonal"),
        basis_digest({"a": (8, 8), "b": (16, 8)}, 2, 5, "orthogonal"),
        basis_digest(shapes, 3, 5, "orthogonal"),
        basis_digest(shapes, 2, 6, "orthogonal"),
        basis_digest(shapes, 2, 5, "exact"),
    ]
    assert len({name, *others}) == 7
