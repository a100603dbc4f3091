"""Auxiliary pictures: drawn as core draws, once, and read from their files ever after."""

from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.taesd.taesd
import folder_paths
import pytest
import torch
from comfy.sd import VAE
from drawn_by_core import SIDE, draw_with_core, empty
from gated_loras import hook_count
from half_inputs import clip_of
from pack.nodes.break_for_make import auxiliary
from pack.nodes.break_for_make.auxiliary import auxiliary_pictures
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.bridge.drawing import Sampling, draw
from pack.nodes.bridge.families import identify
from pack.nodes.trainer.base import Base
from pack.training.randomness import generator_for
from pair_inputs import RandomFeatures, picture, progress, queue, vae_for
from PIL import Image
from tiny import random_state, tiny, tiny_clip, tiny_vae, weights_hash

SHORT = Sampling(steps=3, cfg=5.0)


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output" / "pastiche" / "auxiliary"


def drawn(name="sd3", prompts=("a red ball",), seed=5, side=SIDE, sampling=SHORT, **inputs):
    """Return the pictures as a node, which runs under inference mode, gets them."""
    model = inputs.get("model") or tiny(name)
    clip = inputs["clip"] if "clip" in inputs else clip_of(name, model)
    vae = inputs["vae"] if "vae" in inputs else vae_for(name)
    with torch.inference_mode():
        return auxiliary_pictures(Base(model, clip, vae), prompts, seed, side, sampling)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("**/*"))}


def nothing_may_be_loaded(monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("a model was loaded")

    for loader in ("load_models_gpu", "load_model_gpu"):
        monkeypatch.setattr(comfy.model_management, loader, refuse)


def packing_vae() -> VAE:
    """Flux.2's small VAE, which packs 2 x 2 latents into one; its file says so in its metadata."""
    with torch.device("meta"):
        layout = comfy.taesd.taesd.TAESD(latent_channels=128)
    state = random_state(layout, 0, torch.float32, gain=1.1)
    return VAE(sd=state, metadata={"tae_latent_channels": 128})


@pytest.mark.parametrize("name", ["sd15", "sd21_v", "sdxl", "sd3", "flux", "flux2", "wan21"])
def test_a_picture_is_what_core_draws_of_an_empty_latent(name, output):
    model = tiny(name)
    sampling = replace(identify(model).samplings.auxiliary, steps=3)
    clip = RandomFeatures(model) if name == "sd21_v" else clip_of(name, model)
    vae = packing_vae() if name == "flux2" else vae_for(name)
    before = weights_hash(model)
    (found,) = drawn(name, model=model, clip=clip, vae=vae, sampling=sampling)
    assert found.shape == (1, SIDE, SIDE, 3)
    assert found.dtype == torch.float32
    seed = generator_for(5, "auxiliary", "a red ball", 0).initial_seed()
    expected = draw_with_core(model, clip, vae, "a red ball", seed, sampling)
    assert torch.equal(found, expected.mul(255).round() / 255)
    assert expected.std() > 0.01
    comfy.model_management.unload_all_models()
    assert weights_hash(model) == before
    assert hook_count(model) == 0


def test_a_distilled_model_is_told_its_guidance_in_place_of_cfg():
    assert identify(tiny("flux")).samplings.auxiliary.cfg == 1.0
    assert identify(tiny("sd15")).samplings.auxiliary.cfg == 7.0
    assert identify(tiny("sd3")).samplings.auxiliary.cfg == 5.0


def test_the_second_time_nothing_is_loaded_and_no_byte_differs(output, monkeypatch):
    prompts = ("a red ball", "a blue box", "ein grüner Würfel, 猫")
    first = drawn(prompts=prompts)
    kept = files(output)
    assert len(kept) == 3
    assert all(name.endswith(".png") for name in kept)
    nothing_may_be_loaded(monkeypatch)
    second = drawn(prompts=prompts)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert files(output) == kept
    notes = []
    for file in output.iterdir():
        with Image.open(file) as opened:
            notes.append(opened.info["pastiche.prompt"])
    assert sorted(notes) == sorted(prompts)


def test_no_prompt_asks_for_nothing(output, monkeypatch):
    nothing_may_be_loaded(monkeypatch)
    assert drawn(prompts=(), model=tiny("sd3"), clip=None, vae=None) == []
    assert not output.exists()


def test_only_what_is_missing_is_drawn(output):
    first, second = drawn(prompts=("a red ball", "a blue box"))
    with progress() as steps:
        again, other, third = drawn(prompts=("a blue box", "a red ball", "a green cube"))
    assert steps[-1] == SHORT.steps  # of one picture
    assert torch.equal(again, second)
    assert torch.equal(other, first)
    assert not torch.equal(third, first)
    assert len(files(output)) == 3


def test_a_prompt_given_twice_gives_two_pictures(output):
    one, two = drawn(prompts=("a red ball", "a red ball"))
    assert not torch.equal(one, two)
    assert torch.equal(drawn(prompts=("a red ball",))[0], one)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"side": 80},
        {"sampling": replace(SHORT, steps=4)},
        {"sampling": replace(SHORT, cfg=6.0)},
        {"sampling": replace(SHORT, sampler_name="heun")},
        {"sampling": replace(SHORT, scheduler="simple")},
        {"vae": lambda: tiny_vae(16, seed=1)},
        {"clip": lambda: tiny_clip(seed=1)},
        {"model": lambda: tiny("sd3", seed=1)},
        {"model": lambda: patched()},
    ],
    ids=["seed", "side", "steps", "cfg", "sampler", "scheduler", "vae", "clip", "model", "patches"],
)
def test_whatever_decides_the_picture_gives_another_one(changes, output):
    (one,) = drawn()
    made = {key: value() if callable(value) else value for key, value in changes.items()}
    (other,) = drawn(**made)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert len(files(output)) == 2
    assert torch.equal(drawn()[0], one)


def patched():
    """A MODEL with a LoRA's change on it."""
    model = tiny("sd3")
    key = "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
    weight = comfy.utils.get_attr(model.model, key)
    model.add_patches({key: ("diff", (torch.ones_like(weight),))}, 0.1)
    return model


def test_what_the_model_carries_for_sampling_is_left_out_as_in_training(output):
    (plain,) = drawn()
    for file in output.iterdir():
        file.unlink()
    model = tiny("sd3")
    model.set_model_sampler_cfg_function(lambda values: values["uncond"])
    (found,) = drawn(model=model)
    assert torch.equal(found, plain)
    assert "sampler_cfg_function" in model.model_options


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 1  # within the pixels
    file.write_bytes(content)


def another_size(file: Path) -> None:
    Image.new("RGB", (16, 16)).save(file)


def another_picture(file: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(file)


@pytest.mark.parametrize("damage", [cut_short, one_bit, another_size, another_picture, empty])
def test_a_damaged_file_is_drawn_again(damage, output):
    (one,) = drawn()
    (file,) = output.iterdir()
    kept = file.read_bytes()
    damage(file)
    (again,) = drawn()
    assert torch.equal(again, one)
    assert files(output) == {file.name: kept}


def test_an_interrupt_leaves_whole_pictures_and_nothing_else(output):
    model = tiny("sd3")
    before = weights_hash(model)

    def on_step(value: int, total: int) -> None:
        assert total == 2 * SHORT.steps
        if value == SHORT.steps + 2:
            comfy.model_management.interrupt_current_processing()

    with progress(on_step), pytest.raises(comfy.model_management.InterruptProcessingException):
        drawn(model=model, prompts=("a red ball", "a blue box"))
    (file,) = output.iterdir()
    with Image.open(file) as opened:
        assert opened.info["pastiche.prompt"] == "a red ball"
    comfy.model_management.unload_all_models()
    assert weights_hash(model) == before
    with progress() as steps:
        drawn(model=model, prompts=("a red ball", "a blue box"))
    assert steps[-1] == SHORT.steps


def test_an_interrupt_in_the_first_picture_leaves_no_file(output):
    def on_step(value: int, total: int) -> None:
        comfy.model_management.interrupt_current_processing()

    with progress(on_step), pytest.raises(comfy.model_management.InterruptProcessingException):
        drawn()
    assert not output.exists()


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_training_afterwards_learns_what_it_learns_without(name, output, monkeypatch, tmp_path):
    found = []
    for first in (False, True):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / str(first)))
        model = tiny(name, inference=True)
        before = weights_hash(model)
        if first:
            drawn(name, model=model)
        found.append(queue(name, model=model, before=picture(seed=1)).result)
        assert weights_hash(model) == before
    (style, _, losses), (after, _, losses_after) = found
    assert losses == losses_after
    assert all(torch.equal(style[key], after[key]) for key in style)


def test_nan_is_one_sentence_and_no_file(output, monkeypatch):
    vae = tiny_vae(16)
    monkeypatch.setattr(vae, "decode", lambda latent: torch.full((1, SIDE, SIDE, 3), torch.nan))
    with pytest.raises(RuntimeError, match="VAE must give finite numbers, got NaN"):
        drawn(vae=vae)
    model = tiny("sd3", fresh=True)
    with torch.no_grad():
        next(model.model.diffusion_model.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"model must give finite numbers.*lower cfg"):
        drawn(model=model)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 72}, "multiples of 16 pixels, got 72 x 72; set for example 64 x 64"),
        ({"side": 0}, "multiples of 16 pixels, got 0 x 0; set for example 16 x 16"),
        ({"prompts": ("a ball", " ")}, "must describe a picture, got an empty text for prompt 2"),
        ({"clip": None}, "got none for clip; connect"),
        ({"vae": None}, "got none for vae; connect"),
        ({"vae": tiny_vae(4)}, "for latents of 16 channels, got one for 4; connect the VAE"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_drawn(changes, message, output):
    with pytest.raises(ValueError, match=message):
        drawn(**changes)
    assert not output.exists()


def test_a_full_disk_is_said(output, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("'x.png' needs 0.1 MB, got: No space left on device; free some space")

    monkeypatch.setattr(auxiliary, "replace_file", refuse)
    with pytest.raises(RuntimeError, match="No space left"):
        drawn()
    assert files(output) == {}


def test_drawing_outside_inference_mode_gives_the_same():
    model, clip, vae = tiny("sd3"), tiny_clip(), vae_for("sd3")
    (found,) = auxiliary_pictures(Base(model, clip, vae), ["a red ball"], 5, SIDE, SHORT)
    with torch.inference_mode():
        conds = [encode_prompt(clip, text) for text in ("a red ball", "")]
        seed = generator_for(5, "auxiliary", "a red ball", 0).initial_seed()
        size = (SIDE, SIDE)
        expected = draw(model, vae, *conds, seed, size, SHORT, lambda step: None)
    assert torch.equal(found, expected.mul(255).round() / 255)
    assert not found.is_inference()
