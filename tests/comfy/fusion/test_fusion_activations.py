"""What the hooks count of a layer's inputs."""

import pytest
import torch
from pack.lora_ops import GramStream, LowRank
from pack.nodes.fusion.activations import InputWatch
from pack.nodes.fusion.changes import WeightSlice
from pack.nodes.fusion.layers import FusedLayer
from torch import nn

SITE = "diffusion_model.layer"


def watch_of(module, **changes):
    """Return a watch of a module that a concept changes with rank 2."""
    shape = tuple(module.weight.shape)
    layer = FusedLayer(
        "lora_unet_layer", WeightSlice(f"{SITE}.weight", 0, shape[0]), shape, "spatial", SITE
    )
    ones = (1,) * (len(shape) - 2)
    factors = LowRank(torch.ones(2, *shape[1:]), torch.ones(shape[0], 2, *ones))
    values = {
        **{"sites": {SITE: module}, "layers": [layer], "factors": {layer.name: factors}},
        **{"sums": {SITE: GramStream(layer.width)}, "weight": 1.0, "calls": 2, "per_call": True},
        **{"label": "'boat'", **changes},
    }
    return InputWatch(**values)


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_pictures_of_any_aspect_count_alike():
    module = nn.Linear(6, 4)
    rows = inputs(128, 6), inputs(64, 6, seed=1)
    watch = watch_of(module, weight=0.5)
    with watch.attached():
        for x in rows:
            module(x[None])
    means = [x.mT @ x / len(x) for x in rows]
    total = watch.sums[SITE].total().matrix
    torch.testing.assert_close(total.float(), 0.5 * (means[0] + means[1]), rtol=1e-4, atol=1e-5)
    own = watch.member_statistics(2).projected["lora_unet_layer"]
    torch.testing.assert_close(own.float(), torch.ones(2, 6) @ total.float(), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_never_called_is_named():
    watch = watch_of(nn.Linear(6, 4))
    with pytest.raises(
        ValueError, match=f"that 'boat' changes .+ got no call of '{SITE}'"
    ) as error:
        watch.member_statistics(2)
    assert "\n" not in str(error.value)


def test_sites_without_a_change_keep_no_rows():
    module = nn.Linear(6, 4)
    watch = watch_of(module, factors={})
    with watch.attached():
        module(inputs(9, 6)[None])
    own = watch.member_statistics(1)
    assert (dict(own.projected), dict(own.samples)) == ({}, {})
    assert watch.sums[SITE].total().rows == 9


@pytest.mark.parametrize("padding", [1, "same", "valid", (2, 0)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_rows_of_a_convolution_are_its_patches(padding, mode):
    module = nn.Conv2d(3, 5, 3, padding=padding, padding_mode=mode, bias=False)
    x = inputs(2, 3, 8, 8)
    rows = watch_of(module).rows_of(SITE, module, x)
    found = rows @ module.weight.flatten(1).mT
    torch.testing.assert_close(found, module(x).flatten(2).mT.flatten(0, 1))
