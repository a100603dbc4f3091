"""The pair trainer's node on tiny real models, from pictures to a LoRA that core loads."""

import logging
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_train import LossGraphNode
from gated_loras import hook_count
from pack.lora_ops import OrthogonalRows
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.text.training_cond import Framing, training_cond
from pack.nodes.trainer.nodes import TrainingSettingsNode
from pack.nodes.trainer.target_layers import training_sites
from pack.training import FAMILIES, TrainingSettings
from pack.training.adapters import new_adapter
from pair_inputs import RandomFeatures, checked_trainer, new_trainer, picture, progress, queue
from PIL import Image
from tiny import tiny, tiny_clip, weights_hash
from wide_sdxl import real_width_sdxl

import nodes as core_nodes


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_a_graph_is_trained_and_core_loads_the_result(name, output, caplog):
    model = tiny(name, inference=True)
    before = weights_hash(model)
    clip = RandomFeatures(model) if name == "sdxl" else tiny_clip()
    with progress() as steps:
        style, contents, losses = queue(name, model=model, clip=clip, steps=3).result
    assert steps == [1, 2, 3]
    assert {curve: len(values) for curve, values in losses.items()} == {
        "loss": 3,
        "content": 3,
        "style": 2,
    }
    assert weights_hash(model) == before
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training

    assert len(contents) == 1
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    for role, lora in (("style", style), ("content", contents[0])):
        assert lora.metadata["pastiche.role"] == role
        file = f"{name}_{role}.safetensors"
        safetensors.torch.save_file(dict(lora), folder / file, lora.metadata)
        with caplog.at_level(logging.WARNING), torch.inference_mode():
            (styled,) = core_nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
        assert "not loaded" not in caplog.text.lower()
        patched = {(key, patch[3]) for key, found in styled.patches.items() for patch in found}
        assert len(patched) == len(training_sites(model, "attention"))


def test_metadata_says_what_was_trained():
    style, contents, _ = queue(steps=3, seed=8).result
    expected = {
        "modelspec.architecture": "stable-diffusion-3/lora",
        "ss_base_model_version": "sd3",
        "pastiche.method": "pair",
        "pastiche.base_family": "SD3",
        "pastiche.style_words": "in ink",
        "pastiche.content_prompt": "a red ball",
        "pastiche.steps": "3",
        "pastiche.rank": "2",
        "pastiche.learning_rate": "0.01",
        "pastiche.seed": "8",
        "pastiche.basis_seed": "42",
        "pastiche.style_start_step": "1",
        "pastiche.flip": "never",
        "pastiche.base_patched": "false",
    }
    for lora in (style, contents[0]):
        assert expected.items() <= lora.metadata.items()
        assert all(isinstance(value, str) for value in lora.metadata.values())


def test_the_losses_are_drawn_by_core():
    losses = queue().result[2]
    drawn = LossGraphNode.execute(losses, "losses", prompt=None, extra_pnginfo=None)
    assert drawn.ui


def test_the_node_shows_the_pair_as_trained_and_its_values():
    before, after = picture(40, 50, seed=1), picture(60, 60, seed=2)
    settings = TrainingSettings(flip="always")
    shown = queue(before=before, after=after, settings=settings, rank=0).ui
    (image,) = shown["images"]
    file = Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]
    with Image.open(file) as opened:
        assert opened.size == (2 * 48, 32)  # SD3's multiple is 16
        pixel = torch.tensor(opened.getpixel((0, 0))[:3]) / 255
    torch.testing.assert_close(pixel, before[0, 4, 48], atol=1 / 255, rtol=0)
    (text,) = shown["text"]
    assert "SD3: steps 3, rank 32 (default: ours, after the authors' Flux port)" in text
    assert "style from step 2 of 3, mirrored: always" in text
    assert "pair 1 trained at 48 x 32" in text
    assert "after (60 x 60) is fitted onto before's frame" in text
    assert "stored in" in text


@pytest.mark.parametrize("packing", ["batched", "sequential"])
def test_always_mirrored_is_training_on_mirrored_pictures(packing):
    before, after = picture(32, 48, seed=1), picture(32, 48, seed=2)
    mirrored = queue(
        before=before, after=after, packing=packing, settings=TrainingSettings(flip="always")
    )
    by_hand = queue(before=before.flip(2), after=after.flip(2), packing=packing)
    assert mirrored.result[2] == by_hand.result[2]
    for key, tensor in by_hand.result[0].items():
        assert torch.equal(mirrored.result[0][key], tensor)


def test_randomly_mirrored_pictures_are_both_used():
    losses = {
        flip: queue(steps=6, style_start=0.0, settings=TrainingSettings(flip=flip)).result[2]
        for flip in ("never", "always", "random")
    }
    first = {flip: found["content"][0] for flip, found in losses.items()}
    assert first["random"] in (first["never"], first["always"])
    assert losses["random"] not in (losses["never"], losses["always"])


def test_several_pairs_share_the_style_and_keep_their_contents(output):
    style, contents, losses = queue(
        before=[picture(32, 32, seed=1), torch.cat([picture(16, 48, seed=n) for n in (2, 3)])],
        after=[torch.cat([picture(32, 32, seed=n) for n in (4, 5)]), picture(48, 16, seed=6)],
        content_prompt=["a ball", "a box", "a cone"],
        steps=6,
    ).result
    assert len(contents) == 3
    assert len(losses["content"]) == 6
    assert [lora.metadata["pastiche.content_prompt"] for lora in contents] == [
        "a ball",
        "a box",
        "a cone",
    ]
    ups = {key for key in style if key.endswith("lora_B.weight")}
    downs = {key for key in style if key.endswith("lora_A.weight")}
    assert all(any(lora[key].any() for key in ups) for lora in (style, *contents))
    for key in downs:
        assert torch.equal(contents[0][key], contents[1][key])
        assert (contents[0][key] @ style[key].T).abs().max() < 1e-5
    assert any(not torch.equal(contents[0][key], contents[1][key]) for key in ups)
    files = sorted(path.name for path in output.glob("pastiche/*/6 steps/*.safetensors"))
    assert files == [*(f"content_{n}.safetensors" for n in (1, 2, 3)), "style.safetensors"]


def test_sdxl_rows_carry_true_size_and_crop():
    model = tiny("sdxl")
    clip = RandomFeatures(model)
    trainer = checked_trainer(
        "sdxl", model=model, clip=clip, before=picture(72, 61, seed=1), after=picture(100, 90)
    )
    ((before, after),) = trainer.prepare(3)[0].pairs
    framings = (Framing(61, 72, 2, 0, 56, 72), Framing(90, 100, 4, 0, 56, 72))
    prompts = ("a red ball", "a red ball in ink")
    for shown, framing, prompt in zip((before, after), framings, prompts, strict=True):
        expected = training_cond(model, encode_prompt(clip, prompt), shown.latent, framing)
        torch.testing.assert_close(shown.cond.model_conds["y"].cond, expected.model_conds["y"].cond)
        assert shown.latent.shape == (4, 9, 7)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_zero_is_the_family_default_and_is_said_to_be(family, monkeypatch):
    monkeypatch.setattr("pack.nodes.trainer.base.identify_for_training", lambda model: family)
    plan = new_trainer(steps=0, rank=0, learning_rate=0.0)
    defaults = family.pair
    assert plan.config.steps == defaults.steps
    assert plan.config.rank == defaults.rank
    assert plan.config.learning_rate == defaults.learning_rate
    assert plan.config.weight_decay == defaults.weight_decay
    assert plan.style_start_step(defaults.steps) == round(defaults.steps / 3)
    assert plan.values_line(plan.config.steps).count(f"(default: {defaults.source})") == 3


def test_an_interrupt_within_the_run_leaves_its_last_step_alone(output):
    model = tiny("sd3")
    before = weights_hash(model)

    def interrupt(value: int, total: int) -> None:
        if value == 2:
            comfy.model_management.interrupt_current_processing()

    with (
        progress(interrupt) as steps,
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        queue(model=model, steps=50)
    assert steps == [1, 2]
    (run,) = (output / "pastiche").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "lock", "pieces.json"]
    assert [path.name for path in run.rglob("*.safetensors")] == ["step_00000002.safetensors"]
    assert weights_hash(model) == before
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training


def test_settings_travel_from_their_node():
    values = {
        "precision": "bf16",
        "resolution": 64,
        "flip": "always",
        "optimizer": "SGD",
        "weight_decay": 0.5,
        "targets": "all linear",
        "batch_size": 3,
    }
    (settings,) = TrainingSettingsNode.execute(**values).result
    assert settings == TrainingSettings(**values)
    with progress() as steps:
        losses = queue(settings=[settings], steps=2).result[2]
    assert steps == [1, 2]
    assert all(torch.isfinite(torch.tensor(losses["loss"])))


def test_real_sdxl_has_the_published_counts():
    sites = training_sites(real_width_sdxl(), "attention")
    widths = [site.shape[1] for site in sites.values()]
    assert len(sites) == 560
    assert [widths.count(width) for width in (640, 1280, 2048)] == [60, 360, 140]
    kind = OrthogonalRows("style")
    adapter = new_adapter("style", kind, sites, 64, 0, torch.device("cpu"))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 42_598_400
    drawn = [parts["down"] for parts in adapter.parts.values()]
    assert sum(down.numel() for down in drawn) == 50_298_880
    assert len({down.data_ptr() for down in drawn}) == 3
