"""A base's asset, assembled, loads in the stock loader and samples; a bad one is refused."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from drawn.assemble import (
    TEXT,
    assemble,
    dequantised,
    metadata_of,
    quantised,
    stored_parts,
    write_asset,
)
from drawn.mmdit import ContextRows, MMDiT
from drawn.rows import full_prompts
from drawn.text_encoder import END, START, TextEncoder, Tokenizer
from drawn.vae import TinyVAE

import nodes

TOKENIZER = Tokenizer(Path(os.environ["COMFYUI_PATH"]))
TOKENS = [START, *TOKENIZER.words("a fox on sand"), END]


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    denoiser = MMDiT()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.04)
    vae = TinyVAE(16)
    vae.set_scale(torch.rand(2, 3, 32, 32))
    encoder = TextEncoder(TOKENS)
    path = tmp_path_factory.mktemp("drawn") / "base_b.safetensors"
    states = denoiser.state_dict(), vae.state_dict(), encoder.trained()
    write_asset(path, "b", *states, {"world": "0" * 16, "steps": "1"})
    return path


def test_an_asset_of_base_b_fits_its_budget(asset: Path) -> None:
    assert asset.stat().st_size <= 24 * 10**6 + 2 * 10**6  # trained rows of all words to come


def test_int8_is_within_half_a_scale() -> None:
    weight = torch.randn(7, 3, 2)
    rounded, scale = quantised(weight)
    error = (dequantised(rounded, scale) - weight).abs()
    assert (error <= scale.view(-1, 1, 1) / 2 + 1e-7).all()


def test_the_stock_loader_and_sampler_take_it(asset: Path, tmp_path: Path) -> None:
    checkpoint = assemble(asset, tmp_path / "drawn_b.safetensors")
    before = checkpoint.read_bytes()
    assert assemble(asset, checkpoint).read_bytes() == before
    assert metadata_of(checkpoint)["world"] == "0" * 16
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]
    assert type(model.model).__name__ == "SD3"
    positive = nodes.CLIPTextEncode().encode(clip, "a fox on sand")[0]
    assert positive[0][0].shape == (1, 77, 4096)
    latent = {"samples": torch.zeros(1, 16, 12, 24)}
    with torch.inference_mode():
        sampled = nodes.KSampler().sample(
            model, 1, 2, 3.5, "euler", "simple", positive, positive, latent
        )[0]
        picture = nodes.VAEDecode().decode(vae, sampled)[0]
    assert picture.shape == (1, 96, 192, 3)
    assert torch.isfinite(picture).all()


def test_comfyuis_conditioning_is_what_training_saw(asset: Path, tmp_path: Path) -> None:
    checkpoint = assemble(asset, tmp_path / "drawn_b2.safetensors")
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    clip = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[1]
    cond, extra = nodes.CLIPTextEncode().encode(clip, "a fox on sand")[0][0]
    encoder = TextEncoder.of(stored_parts(asset)[TEXT])
    prompts: ContextRows = full_prompts(encoder, TOKENIZER, ["a fox on sand"])
    assert (cond[..., :768] - prompts.tokens).abs().max() < 2e-2 * prompts.tokens.abs().max()
    pooled = extra["pooled_output"][..., :768]
    assert (pooled - prompts.pooled).abs().max() < 2e-2 * prompts.pooled.abs().max()


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_an_asset_that_is_cut_short_is_refused(asset: Path, tmp_path: Path, kept: int) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(asset.read_bytes()[:kept])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        assemble(broken, tmp_path / "out.safetensors")


def test_an_asset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a file"):
        assemble(tmp_path / "none.safetensors", tmp_path / "out.safetensors")
