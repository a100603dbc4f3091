"""Gated hooks: each row gets its own adapters, frozen parts get no gradient, nothing stays."""

from collections.abc import Mapping

import pytest
import torch
from pack.lora_ops import LowRank, OrthogonalRows, delta
from pack.training import Gate, GatedAdapters, Site
from pack.training.adapters import TrainedAdapter
from torch import Tensor, nn

OFF: Mapping[str, Gate] = {}


def linear(inputs: int = 6, outputs: int = 5) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    return layer.requires_grad_(False)


def adapter(site: Site, name: str = "site", seed: int = 0, rank: int = 2) -> TrainedAdapter:
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(site.shape) - 2)
    down = torch.randn(rank, *site.shape[1:], generator=generator, dtype=torch.float64)
    up = torch.randn(site.shape[0], rank, *ones, generator=generator, dtype=torch.float64)
    return TrainedAdapter(OrthogonalRows(), {name: {"down": down, "up": nn.Parameter(up)}})


def change_of(trained: TrainedAdapter, name: str = "site") -> Tensor:
    parts = trained.parts[name]
    return delta(LowRank(parts["down"], parts["up"])).detach()


def test_each_row_gets_its_own_adapters():
    layer = linear()
    site = Site(layer, (5, 6))
    one, two = adapter(site, seed=1), adapter(site, seed=2)
    gates = GatedAdapters({"site": site}, {"one": one, "two": two})
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    rows = [{"one": Gate()}, OFF, {"one": Gate(0.5), "two": Gate(-2.0)}, {"one": Gate()}]
    base = layer(x)
    with gates.attached(), gates.gated(rows):
        output = layer(x)
    expected = base.clone()
    expected[0] += x[0] @ change_of(one).T
    expected[2] += 0.5 * x[2] @ change_of(one).T - 2 * x[2] @ change_of(two).T
    expected[3] += x[3] @ change_of(one).T
    torch.testing.assert_close(output, expected)
    assert torch.equal(output[1], base[1])


def test_a_row_goes_without_the_adapter_where_its_gate_is_off():
    layer, other = linear(), linear()
    sites = {"site": Site(layer, (5, 6)), "other": Site(other, (5, 6))}
    trained = adapter(sites["site"])
    both = TrainedAdapter(trained.parametrization, dict.fromkeys(sites, trained.parts["site"]))
    gates = GatedAdapters(sites, {"one": both})
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    rows = [{"one": Gate(off=frozenset({"site"}))}, {"one": Gate()}]
    bases = layer(x), other(x)
    with gates.attached(), gates.gated(rows):
        found = layer(x), other(x)
    change = x @ change_of(trained).T
    assert torch.equal(found[0][0], bases[0][0])
    torch.testing.assert_close(found[0][1], bases[0][1] + change[1])
    torch.testing.assert_close(found[1], bases[1] + change)


def test_a_slice_of_a_fused_layer_changes_only_its_channels():
    layer = linear(6, 12)
    site = Site(layer, (4, 6), start=4)
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    base = layer(x)
    with gates.attached(), gates.gated([{"one": Gate()}] * 2):
        output = layer(x)
    torch.testing.assert_close(output[..., 4:8], base[..., 4:8] + x @ change_of(trained).T)
    assert torch.equal(output[..., :4], base[..., :4])
    assert torch.equal(output[..., 8:], base[..., 8:])


def test_a_convolution_takes_its_own_stride_and_padding():
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64).requires_grad_(False)
    site = Site(layer, tuple(layer.weight.shape))
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    base = layer(x)
    with gates.attached(), gates.gated([OFF, {"one": Gate()}]):
        output = layer(x)
    weight = layer.weight + change_of(trained)
    expected = nn.functional.conv2d(x, weight, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(output[1], expected[1])
    assert torch.equal(output[0], base[0])


def test_a_module_that_sees_several_entries_per_row_repeats_the_gates():
    layer = linear()
    site = Site(layer, (5, 6))
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(6, 2, 6, dtype=torch.float64)
    with gates.attached(), gates.gated([OFF, {"one": Gate()}]):
        output = layer(x)
    expected = layer(x)
    expected[3:] += x[3:] @ change_of(trained).T
    torch.testing.assert_close(output, expected)


def test_a_batch_that_is_no_multiple_of_the_rows_is_refused():
    layer = linear()
    site = Site(layer, (5, 6))
    gates = GatedAdapters({"site": site}, {"one": adapter(site)})
    with (
        gates.attached(),
        gates.gated([OFF, OFF]),
        pytest.raises(RuntimeError, match="multiple of the call's rows, got 3 for 2"),
    ):
        layer(torch.zeros(3, 6, dtype=torch.float64))


def test_frozen_parts_get_no_gradient_and_gradient_flows_through_them():
    first, second = linear(6, 6), linear(6, 6)
    sites = {"first": Site(first, (6, 6)), "second": Site(second, (6, 6))}
    parts = {
        name: {
            site_name: adapter(site, site_name, seed).parts[site_name]
            for site_name, site in sites.items()
        }
        for seed, name in enumerate(("content", "style"))
    }
    adapters = {name: TrainedAdapter(OrthogonalRows(), parts[name]) for name in parts}
    gates = GatedAdapters(sites, adapters)
    x = torch.randn(2, 6, dtype=torch.float64)
    frozen = {"content": Gate(frozen=frozenset({"up"})), "style": Gate()}
    with gates.attached(), gates.gated([frozen, frozen]):
        second(first(x).tanh()).square().sum().backward()
    assert all(p.grad is None for p in adapters["content"].parameters())

    # The same value written out, with the content's change as a constant.
    ups = {name: parts["style"][name]["up"].detach().clone().requires_grad_() for name in sites}
    weights = {
        name: site.module.weight
        + change_of(adapters["content"], name)
        + ups[name] @ parts["style"][name]["down"]
        for name, site in sites.items()
    }
    hidden = (x @ weights["first"].T + first.bias).tanh()
    (hidden @ weights["second"].T + second.bias).square().sum().backward()
    for name, up in ups.items():
        torch.testing.assert_close(parts["style"][name]["up"].grad, up.grad)


def test_hooks_go_and_gates_close_whatever_happens():
    layer = linear()
    site = Site(layer, (5, 6))
    gates = GatedAdapters({"site": site}, {"one": adapter(site)})
    x = torch.randn(1, 6, dtype=torch.float64)
    base = layer(x)

    def failing_run() -> None:
        with gates.attached(), gates.gated([{"one": Gate()}]):
            assert len(layer._forward_hooks) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing_run()
    assert not layer._forward_hooks
    with gates.attached():
        assert torch.equal(layer(x), base)


class Halves:
    """The first tokens get the first rank, the others the second."""

    def at(self, site: str, output: Tensor) -> Tensor | None:
        if output.ndim == 2:
            return None
        if output.ndim == 4:
            columns = torch.arange(output.shape[-1], device=output.device)
            left = (columns < 3).expand(output.shape[-2:]).to(output)
            return torch.stack([left, 1 - left])
        first = (torch.arange(output.shape[1]) < 2).to(output)
        return torch.stack([first, 1 - first], 1)


def test_each_token_gets_the_ranks_that_are_its_own():
    layer = linear()
    site = Site(layer, (5, 6))
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    with gates.attached(), gates.gated([OFF, {"one": Gate(0.5, token_weights=Halves())}, OFF]):
        output = layer(x)
    parts = trained.parts["site"]
    expected = layer(x)
    for token in range(4):
        rank = int(token >= 2)
        hidden = x[1, token] @ parts["down"][rank]
        expected[1, token] += 0.5 * hidden * parts["up"].detach()[:, rank]
    torch.testing.assert_close(output, expected)
    assert torch.equal(output[0], layer(x)[0])


def test_a_layer_without_shares_gets_no_term():
    layer = linear()
    site = Site(layer, (5, 6))
    gates = GatedAdapters({"site": site}, {"one": adapter(site)})
    x = torch.randn(2, 6, dtype=torch.float64)
    with gates.attached(), gates.gated([{"one": Gate(token_weights=Halves())}] * 2):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_tokens_of_regrouped_rows_are_not_told_apart():
    layer = linear()
    site = Site(layer, (5, 6))
    gates = GatedAdapters({"site": site}, {"one": adapter(site)})
    with (
        gates.attached(),
        gates.gated([{"one": Gate(token_weights=Halves())}]),
        pytest.raises(
            RuntimeError, match="rows whole where its tokens are told apart, got 2 for 1"
        ),
    ):
        layer(torch.zeros(2, 4, 6, dtype=torch.float64))


def test_places_of_a_convolution_get_the_ranks_that_are_their_own():
    layer = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64).requires_grad_(False)
    site = Site(layer, tuple(layer.weight.shape))
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    with gates.attached(), gates.gated([{"one": Gate(token_weights=Halves())}]):
        output = layer(x)
    parts = trained.parts["site"]
    ranks = [
        nn.functional.conv2d(x, parts["down"][rank, None], padding=1)
        * parts["up"].detach()[:, rank].view(1, 4, 1, 1)
        for rank in range(2)
    ]
    expected = layer(x) + torch.cat([ranks[0][..., :3], ranks[1][..., 3:]], -1)
    torch.testing.assert_close(output, expected)


def test_shares_let_the_gradient_through():
    layer = linear()
    site = Site(layer, (5, 6))
    trained = adapter(site)
    gates = GatedAdapters({"site": site}, {"one": trained})
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    with gates.attached(), gates.gated([{"one": Gate(token_weights=Halves())}]):
        layer(x)[:, :2].sum().backward()
    up = next(iter(trained.parameters())).grad
    assert up[:, 0].any()
    assert not up[:, 1].any()
    assert not x.grad[:, 2:].any()
