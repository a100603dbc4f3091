"""LoRA files of this pack in ComfyUI: saved, listed, loaded by core and applied as by us."""

import asyncio
import base64
import io
import json
import logging

import aiohttp
import comfy.sample
import comfy.sd
import pytest
import safetensors.torch
import torch
from lora_files_case import (
    apply,
    picture,
    random_lora,
    released_pair_keys,
    sampled,
    save,
    unet_lora,
)
from pack.lora_ops.keys import factor_keys
from pack.nodes.bridge.families import identify
from pack.nodes.lora.files import LONGEST_HEADER
from pack.nodes.lora.nodes import LoadLora
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import LoraState
from pack.training.files.tensor_file import read_header
from PIL import Image
from tiny import tiny, tiny_clip

import nodes as core_nodes

__all__ = ["picture"]  # fixture

BASES = ("sd15", "sdxl", "sd3", "flux", "wan21")
PROMPT = "a red ball on grass"


def clip_lora(prefix="lora_te"):
    return random_lora(
        {
            f"{prefix}_text_model_encoder_layers_{layer}_{name}": shape
            for layer in range(2)
            for name, shape in (("self_attn_q_proj", (768, 768)), ("mlp_fc1", (3072, 768)))
        }
    )


def encoded(clip):
    return clip.encode_from_tokens(clip.tokenize(PROMPT))


@pytest.mark.parametrize("base", BASES)
def test_a_saved_file_does_in_cores_loader_what_ours_does(base, loras, caplog):
    model, clip = tiny(base), tiny_clip()
    lora = unet_lora(model)
    lora = LoraState({**lora, **clip_lora()}, lora.metadata)
    name = save(lora)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        by_core = core_nodes.LoraLoader().load_lora(model, clip, name, 0.7, 0.6)
        picture = sampled(by_core[0])
    assert "lora key not loaded" not in caplog.text
    assert "NOT LOADED" not in caplog.text
    assert "ERROR" not in caplog.text
    by_us = apply(model, lora, clip=clip)
    assert torch.equal(sampled(by_us[0]), picture)
    assert torch.equal(encoded(by_us[1]), encoded(by_core[1]))
    plain = sampled(model)
    assert (picture - plain).norm() > 1e-3 * plain.norm()
    assert not torch.equal(encoded(clip), encoded(by_core[1]))


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 1.5e-2)])
def test_rounding_changes_the_loras_effect_little(precision, bound, loras):
    model = tiny("sd15")
    lora = unet_lora(model)
    exact, plain = sampled(apply(model, lora)[0]), sampled(model)
    by_core = core_nodes.LoraLoader().load_lora(model, None, save(lora, "x", precision), 0.7, 0)
    assert (sampled(by_core[0]) - exact).norm() < bound * (exact - plain).norm()


@pytest.mark.parametrize("base", BASES)
def test_a_lora_comes_back_as_it_was_saved(base, loras):
    lora = unet_lora(tiny(base))
    lora.metadata["pastiche.role"] = "style"
    (loaded,) = LoadLora.execute(save(lora)).result
    assert isinstance(loaded, LoraState)
    assert set(loaded) == set(lora)
    assert all(torch.equal(loaded[key], lora[key]) for key in lora)
    assert loaded.metadata["pastiche.role"] == "style"
    assert loaded.metadata["modelspec.architecture"] == lora.metadata["modelspec.architecture"]


def test_the_released_pair_files_load_and_core_alone_would_skip_them(loras, caplog):
    model = tiny("sdxl")
    lora = {key: t for key, t in unet_lora(model).items() if not key.endswith(".alpha")}
    released = released_pair_keys(lora)
    assert "unet.down_blocks.0.attentions.2.transformer_blocks.0" in next(iter(released))
    safetensors.torch.save_file(released, str(loras / "pytorch_lora_weights.safetensors"))
    (loaded,) = LoadLora.execute("pytorch_lora_weights.safetensors").result
    assert set(loaded) == set(lora)
    assert all(torch.equal(loaded[key], lora[key]) for key in lora)
    assert len(apply(model, loaded)[0].patches) == len(lora) // 2
    name, core = save(loaded, "again"), core_nodes.LoraLoader()
    caplog.clear()
    assert len(core.load_lora(model, None, name, 1.0, 0)[0].patches) == len(lora) // 2
    assert "lora key not loaded" not in caplog.text
    core.load_lora(model, None, "pytorch_lora_weights.safetensors", 1.0, 0)
    assert "lora key not loaded" in caplog.text


def core_trained(model):
    """Return what core's Train LoRA makes: native paths, random rank-2 factors and a bias."""
    generator = torch.Generator().manual_seed(3)
    lora = {}
    for path, module in list(model.model.diffusion_model.named_modules()):
        if isinstance(module, torch.nn.Linear) and len(lora) < 30:
            layer, (outer, inner) = f"diffusion_model.{path}", module.weight.shape
            lora[f"{layer}.lora_up.weight"] = torch.randn(outer, 2, generator=generator) * 0.1
            lora[f"{layer}.lora_down.weight"] = torch.randn(2, inner, generator=generator) * 0.1
            lora[f"{layer}.alpha"] = torch.tensor(1.0)
            if module.bias is not None:
                lora[f"{layer}.diff_b"] = torch.randn(outer, generator=generator) * 0.1
    return lora


@pytest.mark.parametrize("base", ["sd15", "flux"])
def test_a_core_trained_lora_is_applied_saved_and_loaded(base, loras):
    model = tiny(base)
    lora = core_trained(model)
    expected = sampled(comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0)[0])
    assert torch.equal(sampled(apply(model, lora)[0]), expected)
    name = save(lora, "core", model=model)
    (loaded,) = LoadLora.execute(name).result
    assert torch.equal(sampled(apply(model, loaded)[0]), expected)
    assert loaded.metadata["modelspec.architecture"] == identify(model).architecture
    by_core = core_nodes.LoraLoader().load_lora(model, None, name, 0.7, 0)[0]
    assert torch.equal(sampled(by_core), expected)


def test_strength_zero_changes_nothing():
    model, clip = tiny("sd15"), tiny_clip()
    lora = {**unet_lora(model), **clip_lora()}
    assert apply(model, lora, 0.0, clip, 0.0) == (model, clip)


def test_the_input_model_and_clip_stay_as_they_were():
    model, clip = tiny("sd15"), tiny_clip()
    lora = {**unet_lora(model), **clip_lora()}
    keys = set(lora)
    patched, patched_clip = apply(model, lora, clip=clip)
    assert patched.patches
    assert patched_clip.patcher.patches
    assert not model.patches
    assert not clip.patcher.patches
    assert set(lora) == keys


def test_text_encoder_layers_without_clip_are_named_by_number(caplog):
    model = tiny("sd15")
    lora = {**unet_lora(model), **clip_lora()}
    layers = len(lora) // 3
    patched, no_clip = apply(model, lora)
    assert no_clip is None
    assert f"4 of the LoRA's {layers} layers belong to the text encoder" in caplog.text
    assert "lora key not loaded" not in caplog.text
    assert set(patched.patches) == set(apply(model, unet_lora(model))[0].patches)


def test_the_file_tells_what_it_is(loras, picture):
    model = tiny("sd15")
    lora = unet_lora(model)
    lora.metadata |= {"pastiche.style_words": "in ink", "ss_steps": "750"}
    name = save(lora, "styles/ink", "fp16", model=model, image=picture)
    header = read_header(loras / name)
    metadata = header.metadata
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "ink"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["modelspec.trigger_phrase"] == metadata["pastiche.style_words"] == "in ink"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_alpha"] == "2"
    assert metadata["ss_steps"] == "750"
    assert {entry["dtype"] for entry in header.entries.values()} == {"F16", "F32"}
    kind, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (128, 96)
    assert Image.open(loras / "styles" / "ink.png").size == (128, 96)
    assert header.start < LONGEST_HEADER


@pytest.mark.parametrize("shape", [(1, 2000, 1500, 3), (2, 8, 8, 4), (1, 1, 1, 1)])
def test_any_picture_becomes_a_small_thumbnail(shape, loras):
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    noise[0, 0, 0, 0] = torch.nan
    name = save(unet_lora(tiny("sd15")), image=noise)
    assert read_header(loras / name).start < 100_000
    assert max(Image.open((loras / name).with_suffix(".png")).size) <= 512


def test_metadata_that_would_hide_the_file_are_refused(loras):
    lora = unet_lora(tiny("sd15"))
    lora.metadata["pastiche.run"] = "x" * LONGEST_HEADER
    with pytest.raises(ValueError, match=r"below 900 kB, got .* 'pastiche\.run'; shorten it"):
        save(lora)
    assert list(loras.iterdir()) == []


def test_a_changed_file_is_read_anew(loras):
    lora = unet_lora(tiny("sd15"))
    name = save(lora)
    first = LoadLora.fingerprint_inputs(name)
    assert LoadLora.fingerprint_inputs(name) == first
    (loras / name).unlink()
    assert LoadLora.fingerprint_inputs(name) is None
    save(lora, precision="fp16")
    assert LoadLora.fingerprint_inputs(name) not in (None, first)


LOAD_AND_SAVE = {
    "1": {"class_type": "PasticheLoadLora", "inputs": {"lora_name": "seed.safetensors"}},
    "2": {
        "class_type": "EmptyImage",
        "inputs": {"width": 640, "height": 512, "batch_size": 1, "color": 255},
    },
    "3": {
        "class_type": "PasticheSaveLora",
        "inputs": {
            "lora": ["1", 0],
            "filename": "styles/my ink",
            "precision": "fp16",
            "trigger": "in ink",
            "image": ["2", 0],
        },
    },
}


def test_the_server_shows_what_it_saved_and_tells_the_page(comfy_server, tmp_path):
    folder = comfy_server.base_directory / "models" / "loras"
    lora = unet_lora(tiny("sd15"))
    safetensors.torch.save_file(dict(lora), str(folder / "seed.safetensors"), lora.metadata)

    async def run():
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{comfy_server.url}/ws?clientId=page") as socket,
        ):
            entry = await asyncio.to_thread(comfy_server.post_prompt, LOAD_AND_SAVE)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    if content["type"] == "pastiche.loras_changed":
                        return entry, content["data"]
        raise AssertionError("the page must be told, got no message")

    entry, told = asyncio.run(asyncio.wait_for(run(), 120))
    assert entry["status"]["status_str"] == "success", entry
    name = "styles/my ink.safetensors"
    assert told == {"name": name}
    assert entry["outputs"]["3"]["text"] == [name]
    listed = comfy_server.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"]
    assert name in listed[0]
    ours = comfy_server.object_info("PasticheLoadLora")["PasticheLoadLora"]["input"]["required"]
    assert name in ours["lora_name"][1]["options"]
    metadata = json.loads(comfy_server.get("/view_metadata/loras", filename=name))
    assert metadata["modelspec.title"] == "my ink"
    assert metadata["modelspec.trigger_phrase"] == "in ink"
    preview = comfy_server.get(f"/experiment/models/preview/loras/0/{name}")
    assert Image.open(io.BytesIO(preview)).size == (512, 410)


def test_key_grammar_matches_what_core_maps():
    model = tiny("sdxl")
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    for layer in training_sites(model, "all linear"):
        assert layer in names
        assert factor_keys(layer).down.startswith("lora_unet_")
