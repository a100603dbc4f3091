"""Concepts trained on tiny real models, and what of them a user would notice."""

import math
import os
import signal

import comfy.lora
import comfy.model_management
import folder_paths
import killed_run
import pytest
import torch
from concept_encoders import clip_of
from headless import Headless, wait_for
from pack.nodes.concepts.apply import apply_concepts
from pack.nodes.text.concept_prompt import encode_concept_prompt
from pack.nodes.trainer.memory_estimator import MemoryEstimator
from pack.training import TrainingSettings
from pair_inputs import picture, progress
from resume_case import CANCEL, EVERY_STEP, left_behind
from tiny import tiny, tiny_clip, tiny_latent
from training_concepts import checked_trainer, clip_for, identity, queue

from nodes import KSampler

LAYERS = {"sd15_layers": 4, "sdxl": 4}


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def said(out) -> str:
    return out.ui["text"][0]


def stored(output, steps: int) -> dict[str, bytes]:
    (folder,) = output.glob(f"pastiche/*/{steps} steps")
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert set(files) == {"concept.safetensors", "words.safetensors"}
    return files


def masks() -> list[torch.Tensor]:
    white = [torch.zeros(1, *image.shape[1:3]) for image in (picture(seed=1), picture(32, 32))]
    for mask in white:
        mask[:, 8:24, 8:24] = 1
    return white


@pytest.mark.parametrize("name", LAYERS)
def test_a_concept_and_its_lora_come_out_and_nothing_else_changes(name, output):
    model, clip = tiny(name), clip_for(name)
    before = left_behind(model), left_behind(clip.patcher)
    out = queue(name, model=model, clip=clip, steps=2)
    (concept,), losses = out.result
    assert (left_behind(model), left_behind(clip.patcher)) == before
    encoders = ("clip_l", "clip_g") if name == "sdxl" else ("clip_l",)
    assert concept.name == "boat1"
    assert concept.class_words == "boat"
    assert {key: tuple(rows.shape[:2]) for key, rows in concept.embeddings.items()} == {
        encoder: (2, LAYERS[name]) for encoder in encoders
    }
    assert len(losses["loss"]) == len(losses["concept"]) == 2
    # Core's loader knows every layer: of the denoiser and of the text encoder.
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    layers = {key.rsplit(".", 2)[0] if "lora_" in key[-20:] else key for key in concept.lora}
    assert all(layer.removesuffix(".alpha") in known for layer in layers)
    assert any(layer.startswith("lora_te") for layer in layers)
    assert any(layer.startswith("lora_unet") for layer in layers)
    assert concept.family.name == ("SDXL" if name == "sdxl" else "SD1.5")
    assert stored(output, 2)
    lines = said(out)
    assert "<boat1> as boat, steps 2, rank 2" in lines
    assert f"{LAYERS[name]} rows for each of the two words" in lines
    if name == "sdxl":  # nothing reads CLIP-L's last layer
        assert (
            "left out, as no gradient reached them: lora_te1_text_model_encoder_layers_2" in lines
        )
        assert not any("lora_te1_text_model_encoder_layers_2" in layer for layer in layers)
        assert any("lora_te1_text_model_encoder_layers_1" in layer for layer in layers)


def test_the_word_changes_pictures_and_begins_as_its_class():
    out = queue("sd15_layers", steps=4)
    (concept,), _ = out.result
    model, clip = tiny("sd15_layers"), tiny_clip()
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    own = table[clip.tokenize("boat")["l"][0][1][0]].float()
    new, classed = concept.embeddings["clip_l"]
    assert torch.cosine_similarity(classed, own.expand_as(classed)).min() > 0.2
    assert not torch.equal(new[0], new[1])  # each layer has learnt its own

    def drawn(strength: float, prompt: str) -> torch.Tensor:
        with torch.inference_mode():
            patched, text = apply_concepts(model, clip, [concept], strength, strength)
            positive, negative = (
                encode_concept_prompt(text, [concept], one) for one in (prompt, "")
            )
            return KSampler().sample(
                patched,
                3,
                2,
                4.0,
                "euler",
                "normal",
                positive,
                negative,
                tiny_latent(model),
            )[0]["samples"]

    whole, words, other = drawn(1.0, "a <boat1>"), drawn(0.0, "a <boat1>"), drawn(0.0, "a boat")
    assert torch.isfinite(whole).all()
    assert not torch.allclose(whole, words, atol=1e-4)
    assert not torch.allclose(words, other, atol=1e-4)


def test_the_loss_falls():
    """Against a run with the same draws that hardly learns."""
    fast, still = (
        queue("sd15", steps=30, word_rate=rate, text_rate=rate, learning_rate=rate).result[1]
        for rate in (0.005, 1e-9)
    )
    assert sum(fast["loss"][-10:]) < 0.95 * sum(still["loss"][-10:])


@pytest.mark.parametrize("at", [1, 2])
def test_a_cancelled_run_goes_on_to_the_same_bytes(at, output, tmp_path_factory, monkeypatch):
    with monkeypatch.context() as patch:
        whole = tmp_path_factory.mktemp("whole")
        patch.setattr(folder_paths, "output_directory", str(whole))
        queue("sd15", settings=EVERY_STEP)
    model, clip = tiny("sd15"), tiny_clip()
    before = left_behind(model), left_behind(clip.patcher)

    def cancel(value: int, total: int) -> None:
        if value == at:
            comfy.model_management.interrupt_current_processing()

    with progress(cancel), pytest.raises(CANCEL):
        queue("sd15", model=model, clip=clip, settings=EVERY_STEP)
    assert (left_behind(model), left_behind(clip.patcher)) == before
    with progress() as values:
        queue("sd15", settings=EVERY_STEP)
    assert values[0] == at + 1
    assert stored(output, 3) == stored(whole, 3)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor SIGKILL")
def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    runner = Headless(tmp_path / "base", "concept")
    try:
        runner.begin(tmp_path / "whole")
        assert runner.wait() == 0
        child = runner.begin(tmp_path / "killed")
        wait_for(tmp_path / "killed", "checkpoints/*/step_*.safetensors")
        os.kill(child, signal.SIGKILL)
        assert runner.wait() == signal.SIGKILL
        assert not list((tmp_path / "killed").glob("pastiche/*/* steps"))
        runner.begin(tmp_path / "killed")
        assert runner.wait() == 0
    finally:
        runner.end()
    assert "goes on from step" in (tmp_path / "killed" / "text").read_text()
    steps = killed_run.STEPS
    assert stored(tmp_path / "killed", steps) == stored(tmp_path / "whole", steps)


def test_an_equal_graph_is_not_trained_twice():
    first = queue("sd15").result[0][0]
    with progress() as values:
        again = queue("sd15")
    assert not values
    assert "trained before" in said(again)
    assert again.result[0][0].digest == first.digest
    assert all(torch.equal(again.result[0][0].lora[key], first.lora[key]) for key in first.lora)


def test_what_decides_the_result_decides_the_run():
    plain = identity("sd15")
    for changes in (
        {"name": "boat2", "captions": ["a red <boat2> on the sea", "<boat2>"]},
        {"class_word": "ship"},
        {"word_rate": 0.02},
        {"text_rate": 0.02},
        {"seed": 6},
        {"templates": "person"},
        {"learnt": "words only"},
        {"decay": "as set"},
        {"noise_offset": 0.0},
        {"embedding_stop": 0.0},
        {"embedding_start": "a draw per layer"},
        {"lora_start": "normal"},
        {"captions": ["<boat1>"]},
        {"masks": masks()},
        {"crops": "random square"},
        {"density_weight": 0.002},
        {"text_dropout": 0.2},
    ):
        assert identity("sd15", **changes) != plain, changes
    assert identity("sd15", node_id="7", run_name="other") == plain
    masked = identity("sd15", masks=masks())
    assert identity("sd15", masks=masks(), attention_weight=0.1) != masked
    assert identity("sd15", attention_weight=0.1) == plain  # without masks it does nothing


@pytest.mark.parametrize("settings", [{"checkpointing": True}, {"offload": True}])
def test_what_saves_memory_changes_nothing_that_is_learnt(settings, tmp_path, monkeypatch):
    (plain,) = queue("sd15").result[0]
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "apart"))
    (saving,) = queue("sd15", settings=TrainingSettings(**settings)).result[0]
    pairs = [(plain.lora[key], saving.lora[key]) for key in plain.lora]
    pairs += [(rows, saving.embeddings[name]) for name, rows in plain.embeddings.items()]
    for one, other in pairs:
        assert torch.allclose(one, other, atol=1e-5)


def test_a_layer_whose_forward_was_replaced_and_put_back_is_trained_as_before(
    tmp_path, monkeypatch, caplog
):
    """ComfyUI puts a forward back as an attribute of the layer, bound to it."""
    (plain,) = queue("sd15").result[0]
    layer = tiny("sd15").get_model_object(
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
    )
    layer.forward = layer.forward
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "apart"))
    try:
        (again,) = queue("sd15", settings=TrainingSettings(checkpointing=True)).result[0]
    finally:
        del layer.forward
    assert "forecast failed" not in caplog.text
    for key in plain.lora:
        assert torch.allclose(plain.lora[key], again.lora[key], atol=1e-5)


def test_masks_keep_the_words_to_their_place():
    def learnt(weight: float, **changes) -> torch.Tensor:
        (concept,), _ = queue("sd15_layers", attention_weight=weight, steps=2, **changes).result
        return concept.embeddings["clip_l"]

    free, kept = (learnt(weight, masks=masks()) for weight in (0.0, 10.0))
    assert not torch.equal(free, kept)
    unmasked, unasked = (learnt(weight) for weight in (0.0, 10.0))
    assert torch.equal(unmasked, unasked)


def test_a_base_with_umt5_learns_one_row_per_word_and_no_text_encoder_layer():
    out = queue("wan21", clip=clip_of("wan"), class_word="dog", text_rate=0.0, steps=2)
    (concept,), _ = out.result
    assert {key: tuple(rows.shape) for key, rows in concept.embeddings.items()} == {
        "umt5xxl": (2, 1, 4096)
    }
    assert concept.lora
    assert all(key.startswith("diffusion_model.") for key in concept.lora)
    assert "the layers of umt5xxl stay as they are" in said(out)


@pytest.mark.parametrize(
    "changes",
    [
        {"crops": "random square"},
        {"crops": "placed at random"},
        {"crops": "placed at random", "settings": TrainingSettings(flip="random", batch_size=2)},
        {"density_weight": 1.0},
        {"text_dropout": 0.9},
    ],
)
def test_the_released_variants_learn_something_else_and_the_same_again(
    changes, tmp_path, monkeypatch
):
    found = []
    for number in range(2):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / str(number)))
        (concept,), losses = queue("sd15", **changes).result
        assert all(math.isfinite(loss) for loss in losses["loss"])
        found.append(concept.embeddings["clip_l"])
    (plain,), _ = queue("sd15").result
    assert torch.equal(*found)
    assert not torch.equal(found[0], plain.embeddings["clip_l"])


def test_the_word_stays_nearer_to_the_vocabulary_when_drawn_to_it():
    rows = checked_trainer("sd15", density_weight=1.0).prepare(3)[0].words()
    away = {}
    for weight in (0.0, 1e4):
        (concept,), _ = queue("sd15", density_weight=weight, word_rate=0.05).result
        away[weight] = rows.vocabularies["clip_l"].penalty(concept.embeddings["clip_l"])
    assert away[1e4] < away[0.0]


def test_dropout_is_for_the_layers_that_read_the_text_alone():
    plan = checked_trainer("sd15", text_dropout=0.5)
    assert plan.dropout_layers
    assert all(name.endswith(("attn2_to_k", "attn2_to_v")) for name in plan.dropout_layers)
    wan = {"clip": clip_of("wan"), "class_word": "dog", "text_rate": 0.0}
    plan = checked_trainer("wan21", text_dropout=0.5, **wan)
    assert {name.rpartition("cross_attn.")[2] for name in plan.dropout_layers} == {"k", "v"}


def test_words_alone_leave_the_network_as_it_is():
    (concept,), _ = queue("sd15", learnt="words only").result
    assert len(concept.lora) == 0
    start = checked_trainer("sd15").prepare(3)[0].words().starts["clip_l"]
    assert not torch.equal(concept.embeddings["clip_l"], start)


def test_words_and_denoiser_leave_the_text_encoder_alone():
    out = queue("sd15", learnt="words and denoiser")
    (concept,), _ = out.result
    assert len(concept.lora)
    assert not any(key.startswith("lora_te") for key in concept.lora)
    assert "the layers of clip_l stay as they are" in said(out)


def test_the_new_word_begins_alike_or_apart_in_all_layers():
    def start(how: str) -> torch.Tensor:
        recipe, _ = checked_trainer("sd15_layers", embedding_start=how).prepare(3)
        return recipe.words().starts["clip_l"]

    alike, apart = start("one draw"), start("a draw per layer")
    assert all(torch.equal(row, alike[0, 0]) for row in alike[0])
    assert not torch.equal(apart[0, 0], apart[0, 1])
    assert torch.equal(alike[1], apart[1])  # the class word's, in every layer
    norm = tiny_clip().cond_stage_model.clip_l.transformer.get_input_embeddings().weight.norm(dim=1)
    assert alike[0, 0].norm() == pytest.approx(norm.mean().item(), rel=0.1)


def test_previews_show_the_word(output):
    queue("sd15", steps=1, settings=TrainingSettings(preview_every=1))
    assert len(list(output.glob("pastiche/*/previews/*.png"))) == 1


def test_the_forecast_counts_the_text_encoder():
    trainer = checked_trainer("sd15")
    recipe, _ = trainer.prepare(3)
    base = trainer.base
    estimator = MemoryEstimator(base, trainer.layers, trainer.text_encoder, recipe)
    need = estimator.estimate(trainer.config, trainer.run_settings)
    assert need.weights == base.model.model_size() + base.clip.patcher.model_size()
    sizes = sum(rows.numel() for rows in recipe.words().starts.values())
    assert need.learnt > 4 * 4 * sizes  # rows, gradients and two moments beside the LoRA's


def test_unicode_names_are_words_too():
    plan = checked_trainer("sd15", name="bööt7", captions=["ein <bööt7>", ""])
    assert [one.caption for one in plan.dataset] == ["ein <bööt7>", "<bööt7>"]
