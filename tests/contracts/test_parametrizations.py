"""What every parametrisation must hold; one row of the matrix per registered one."""

import pytest
import torch
import torch.nn.functional as F
from pack.lora_ops import PARAMETRIZATIONS, LowRank, delta, forward_delta
from pack.lora_ops.keys import factor_keys
from pack.training import Gate, GatedAdapters, Site, lora_state
from pack.training.adapters import new_adapter
from torch import Tensor, nn

RANK = 2
SHAPES = {"linear": (6, 8), "wide": (5, 32), "convolution": (6, 4, 3, 3)}
LINEAR_ONLY = {"orthogonal_rows"}
CASES = [
    (name, shape)
    for name in PARAMETRIZATIONS
    for shape in SHAPES
    if not (name in LINEAR_ONLY and shape == "convolution")
]
matrix = pytest.mark.parametrize(("name", "shape"), CASES)


def drawn(name: str, shape: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return PARAMETRIZATIONS[name]().init(SHAPES[shape], RANK, generator)


def moved(name: str, shape: str) -> dict[str, Tensor]:
    """Parts in float64 whose learnt ones have left their initial values."""
    generator = torch.Generator().manual_seed(4)
    trainable = PARAMETRIZATIONS[name]().trainable()
    return {
        part: tensor.double()
        + (part in trainable) * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for part, tensor in drawn(name, shape).items()
    }


def inputs(shape: str) -> Tensor:
    size = (2, 4, 7, 6) if shape == "convolution" else (2, 3, SHAPES[shape][1])
    return torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@matrix
def test_it_starts_at_the_base_if_it_says_so(name, shape):
    kind = PARAMETRIZATIONS[name]()
    change = delta(kind.factors(drawn(name, shape)))
    assert change.shape == SHAPES[shape]
    assert change.any().item() is not kind.starts_at_base


@matrix
def test_the_forward_equals_the_delta(name, shape):
    factors = PARAMETRIZATIONS[name]().factors(moved(name, shape))
    x = inputs(shape)
    change = delta(factors)
    assert change.any()
    expected = F.conv2d(x, change) if shape == "convolution" else x @ change.T
    torch.testing.assert_close(forward_delta(x, factors), expected)


@matrix
def test_gradients_are_right(name, shape):
    kind = PARAMETRIZATIONS[name]()
    parts = moved(name, shape)
    learnt = sorted(kind.trainable())
    x = inputs(shape)[:1]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        return forward_delta(x, kind.factors({**parts, **dict(zip(learnt, values, strict=True))}))

    arguments = [x, *(parts[part] for part in learnt)]
    assert torch.autograd.gradcheck(forward, [a.requires_grad_() for a in arguments])


@matrix
def test_only_learnt_parts_get_a_gradient_and_frozen_ones_none(name, shape):
    kind = PARAMETRIZATIONS[name]()
    size = SHAPES[shape]
    module = nn.Conv2d(4, 6, 3) if shape == "convolution" else nn.Linear(size[1], size[0])
    site = Site(module.requires_grad_(False), size)
    adapter = new_adapter("one", kind, {"site": site}, RANK, 0, torch.device("cpu"))
    parts = adapter.parts["site"]
    assert {p for p, t in parts.items() if isinstance(t, nn.Parameter)} == set(kind.trainable())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    gates = GatedAdapters({"site": site}, {"one": adapter})
    x = inputs(shape).float()

    def backward(gate: Gate) -> None:
        with gates.attached(), gates.gated([{"one": gate}] * 2):
            output = module(x)
        if output.requires_grad:
            output.square().sum().backward()

    backward(Gate(frozen=kind.trainable()))
    assert all(part.grad is None for part in parts.values())
    backward(Gate())
    for part, tensor in parts.items():
        assert (tensor.grad is not None) is (part in kind.trainable())
    assert module.weight.grad is None


@matrix
@pytest.mark.parametrize("layer", ["lora_unet_mid_block_to_q", "diffusion_model.blocks.0.to_q"])
def test_a_round_trip_through_file_keys_keeps_the_delta(name, shape, layer):
    factors = PARAMETRIZATIONS[name]().factors(moved(name, shape))
    factors = LowRank(factors.down.float(), factors.up.float(), factors.alpha)
    state = lora_state({layer: factors}, {"a": "b"})
    keys = factor_keys(layer)
    assert sorted(state) == sorted(keys)
    back = LowRank(state[keys.down], state[keys.up], state[keys.alpha].item())
    assert torch.equal(back.down, factors.down)
    assert torch.equal(back.up, factors.up)
    assert back.scale == factors.scale


@matrix
def test_a_draw_follows_from_its_generator(name, shape):
    first, again = drawn(name, shape), drawn(name, shape)
    for part in first:
        assert torch.equal(first[part], again[part])


@pytest.mark.parametrize("name", sorted(LINEAR_ONLY))
def test_a_convolution_is_refused_where_it_is_not_meant(name):
    with pytest.raises(
        ValueError, match=r"need a linear layer, got a weight of shape \(6, 4, 3, 3"
    ):
        drawn(name, "convolution")


@matrix
def test_what_stays_as_drawn_does_not_depend_on_the_run(name, shape):
    kind = PARAMETRIZATIONS[name]()
    first, other = (
        kind.init(SHAPES[shape], RANK, torch.Generator().manual_seed(seed), "layer")
        for seed in (1, 2)
    )
    for part in first.keys() - kind.trainable():
        assert torch.equal(first[part], other[part])
