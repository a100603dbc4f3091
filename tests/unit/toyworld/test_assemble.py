"""The asset's int8 error bound, its round trip, and the checkpoint keys it turns into."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from toyworld.assemble import (  # noqa: E402
    assemble,
    dequantise,
    quantise,
    stored_tensors,
    write_asset,
)


@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3, 3)])
def test_int8_error_is_at_most_half_a_scale(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored, scale = quantise(weight)
    error = (dequantise(stored, scale).float() - weight).flatten(1).abs().amax(dim=1)
    assert stored.dtype == torch.int8
    # fp16 rounds the product once more, by at most 2^-11 of the largest weight.
    assert (error <= 0.5 * scale + 127 * scale * 2**-11).all()


def test_an_all_zero_channel_stays_zero() -> None:
    stored, scale = quantise(torch.zeros(2, 3))
    assert torch.equal(dequantise(stored, scale), torch.zeros(2, 3).half())


def test_asset_round_trip(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    unet = {
        "out.2.weight": torch.randn(4, 8, 3, 3, generator=generator),
        "out.2.bias": torch.randn(4, generator=generator),
    }
    vae = {"taesd_decoder.1.weight": torch.randn(8, 4, 3, 3), "vae_scale": torch.tensor(0.09)}
    asset = tmp_path / "toy.safetensors"
    write_asset(unet, vae, asset, {"toyworld": "test"})
    tensors = stored_tensors(asset)
    assert sorted(tensors) == [
        "first_stage_model.taesd_decoder.1.weight",
        "first_stage_model.vae_scale",
        "model.diffusion_model.out.2.bias",
        "model.diffusion_model.out.2.weight",
    ]
    weight = tensors["model.diffusion_model.out.2.weight"].float()
    assert (weight - unet["out.2.weight"]).norm() / unet["out.2.weight"].norm() < 0.01
    assert torch.equal(tensors["first_stage_model.vae_scale"], vae["vae_scale"])
    assert [p.name for p in tmp_path.iterdir()] == ["toy.safetensors"]


def test_a_missing_asset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train it first"):
        assemble(tmp_path / "absent.safetensors", tmp_path / "out.safetensors")
