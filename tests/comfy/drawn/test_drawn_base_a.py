"""Base A is an SD1.5 for ComfyUI: the same network, schedule and prompts, from a small asset."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from drawn.assemble import DENOISER, TEXT, assemble, metadata_of, stored_parts, write_asset
from drawn.eps_training import schedule
from drawn.mmdit import ContextRows
from drawn.text_encoder import END, START, TextEncoder, Tokenizer
from drawn.unet import UNet, checkpoint_state
from drawn.vae import TinyVAE

import nodes

TOKENIZER = Tokenizer(Path(os.environ["COMFYUI_PATH"]))
PROMPT = "a fox on sand"
TRAINED_WORDS = 700  # more than the trained rows of the world's words


def random_unet() -> UNet:
    torch.manual_seed(0)
    model = UNet().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.04)
    return model


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vae = TinyVAE(4)
    vae.set_scale(torch.rand(2, 3, 32, 32))
    words = [START, *TOKENIZER.words(PROMPT), END]
    others = [token for token in range(1000, 1000 + TRAINED_WORDS) if token not in words]
    encoder = TextEncoder([*words, *others])
    path = tmp_path_factory.mktemp("drawn") / "base_a.safetensors"
    states = random_unet().state_dict(), vae.state_dict(), encoder.trained()
    write_asset(path, "a", *states, {"world": "0" * 16, "steps": "1"})
    return path


@pytest.fixture(scope="module")
def loaded(asset: Path) -> tuple:
    checkpoint = assemble(asset, asset.parent / "drawn_a.safetensors")
    assert metadata_of(checkpoint)["base"] == "a"
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]


def test_an_asset_of_base_a_fits_its_budget(asset: Path) -> None:
    assert asset.stat().st_size <= 32 * 10**6


@pytest.mark.parametrize("size", [(12, 12), (12, 24)])
def test_base_a_is_comfyuis_unet(size: tuple[int, int]) -> None:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import model_config_from_unet

    model = random_unet()
    state = checkpoint_state(model.state_dict())
    config = model_config_from_unet(state, "")
    assert type(config).__name__ == "SD15"
    options = {**config.unet_config, "dtype": torch.float32, "device": "cpu"}
    theirs = UNetModel(**options, operations=comfy.ops.manual_cast)
    theirs.load_state_dict(state, strict=True)
    x, t, tokens = torch.randn(2, 4, *size), torch.tensor([3, 870]), torch.randn(2, 77, 768)
    ours = model(x, t, ContextRows(tokens, torch.zeros(2, 768), torch.zeros(2, 77)))
    with torch.no_grad():
        other = theirs(x, t, context=tokens)
    assert (ours - other).abs().max() < 1e-4 * other.abs().max()


def test_the_schedule_is_sd15s() -> None:
    from comfy.model_sampling import ModelSamplingDiscrete

    assert torch.allclose(schedule(), ModelSamplingDiscrete().sigmas, rtol=1e-4)


def test_the_last_hidden_state_is_what_sd15_reads(loaded: tuple, asset: Path) -> None:
    cond = nodes.CLIPTextEncode().encode(loaded[1], PROMPT)[0][0][0]
    assert cond.shape == (1, 77, 768)
    with torch.no_grad():
        encoder = TextEncoder.of(stored_parts(asset)[TEXT])
        ours = encoder.last_hidden_state(TOKENIZER.ids([PROMPT]))
    assert (cond - ours).abs().max() < 2e-2 * ours.abs().max()


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_loaded_model_denoises_by_the_predicted_noise(
    loaded: tuple, asset: Path, sigma: float
) -> None:
    from comfy.model_management import load_models_gpu

    model = loaded[0]
    load_models_gpu([model])
    unet = UNet().eval().requires_grad_(False)
    unet.load_state_dict(stored_parts(asset)[DENOISER])
    torch.manual_seed(5)
    x, tokens = sigma * torch.randn(1, 4, 12, 12), torch.randn(1, 77, 768)
    with torch.inference_mode():
        theirs = model.model.apply_model(x, torch.tensor([sigma]), c_crossattn=tokens)
    t = (schedule() - sigma).abs().argmin()[None]
    prompts = ContextRows(tokens, torch.zeros(1, 768), torch.zeros(1, 77))
    noise = unet(x / (1 + sigma**2) ** 0.5, t, prompts)
    ours = (x - theirs) / sigma
    assert (ours - noise).abs().max() < 1e-2 * noise.abs().max()  # the file holds fp16 weights


def test_the_stock_loader_and_sampler_take_it(loaded: tuple) -> None:
    model, clip, vae = loaded
    assert type(model.model.model_config).__name__ == "SD15"
    assert model.model.model_type.name == "EPS"
    positive = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
    latent = {"samples": torch.zeros(1, 4, 12, 24)}
    with torch.inference_mode():
        sampled = nodes.KSampler().sample(
            model, 1, 2, 3.5, "euler", "normal", positive, positive, latent
        )[0]
        picture = nodes.VAEDecode().decode(vae, sampled)[0]
    assert picture.shape == (1, 96, 192, 3)
    assert torch.isfinite(picture).all()
