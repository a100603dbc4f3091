"""The text encoder trained beside the model, by every trainer: a setting of all of them."""

import logging
from pathlib import Path

import folder_paths
import half_inputs
import pair_inputs
import plain_inputs
import pytest
import safetensors.torch
import torch
from concept_encoders import clip_of
from half_inputs import joint_inputs, make_inputs
from pack.lora_ops.keys import changes_text_encoder, parts_by_layer
from pack.nodes.break_for_make.nodes_train import Make, TrainHalf
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.guidance.prompts import style_prompts
from pack.nodes.text.live_caption import TokenizedCaption
from pack.nodes.text.training_cond import training_cond
from pack.nodes.trainer.denoiser import open_denoiser
from pack.training import TrainingSettings
from pair_inputs import progress
from resume_case import CANCEL, left_behind
from tiny import tiny, tiny_clip, tiny_latent
from training_concepts import clip_for

from nodes import LoraLoader

RATE = TrainingSettings(text_encoder_rate=0.01)


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def trained_half(**changes):
    inputs = half_inputs.half_inputs("sd15", **{"clip": tiny_clip(), "settings": RATE, **changes})
    with torch.inference_mode():
        return TrainHalf.PREPARE_CLASS_CLONE(None).execute(**inputs)


TRAINERS = {
    "plain": lambda **changes: plain_inputs.queue("sd15", settings=RATE, **changes),
    "pair": lambda **changes: pair_inputs.queue("sd15", settings=RATE, **changes),
    "half": lambda **changes: trained_half(**changes),
}


def text_layers(lora) -> dict:
    return {
        layer: parts for layer, parts in parts_by_layer(lora).items() if changes_text_encoder(layer)
    }


def through_core(model, clip, lora, caplog):
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    file = "with_text.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(lora), folder / file, lora.metadata)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        found = LoraLoader().load_lora(model, clip, file, 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()
    return found


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_lora_holds_layers_of_the_text_encoder_that_core_loads(trainer, caplog):
    model, clip = tiny("sd15", inference=True), tiny_clip()
    before = left_behind(model), left_behind(clip.patcher)
    lora = TRAINERS[trainer](model=model, clip=clip).result[0]
    assert (left_behind(model), left_behind(clip.patcher)) == before
    layers = text_layers(lora)
    assert len(layers) == 8  # two layers of four projections
    assert all(lora[parts["up"]].abs().sum() > 0 for parts in layers.values())
    _, patched = through_core(model, clip, lora, caplog)
    plain, changed = (one.encode_from_tokens(one.tokenize("a red ball")) for one in (clip, patched))
    assert (plain - changed).abs().max() > 1e-4


def test_sdxl_trains_both_text_encoders(caplog):
    model, clip = tiny("sdxl", inference=True), clip_for("sdxl")
    lora = plain_inputs.queue("sdxl", model=model, clip=clip, settings=RATE).result[0]
    assert {layer.split("_text_model")[0] for layer in text_layers(lora)} == {
        "lora_te1",
        "lora_te2",
    }
    through_core(model, clip, lora, caplog)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_an_untrained_text_encoder_says_what_core_s_node_says(name):
    model = tiny(name)
    clip = clip_for(name) if name.startswith("sd1") or name == "sdxl" else clip_of(name)
    latent = tiny_latent(model)["samples"][0]
    wanted = training_cond(model, encode_prompt(clip, "a (red:1.3) ball"), latent).model_conds
    with open_denoiser(model, clip=clip) as denoiser, torch.no_grad():
        wording = TokenizedCaption.of(clip, "a (red:1.3) ball").cond(latent)
        (found,) = denoiser.encoded([wording({})])
    assert found.model_conds.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value.cond, torch.Tensor):
            error = (found.model_conds[key].cond - value.cond).abs().max()
            assert error <= 1e-6 * max(1.0, float(value.cond.abs().max())), key


def test_captions_with_and_without_weights_share_a_step():
    settings = TrainingSettings(text_encoder_rate=0.01, batch_size=2)
    out = plain_inputs.queue("sd15", captions=["a (red:1.2) ball", "a ball"], settings=settings)
    assert len(out.result[1]["loss"]) == 3


def test_a_cancelled_run_goes_on_to_the_same_bytes(output, tmp_path, monkeypatch):
    def files() -> dict[str, bytes]:
        (folder,) = output.glob("pastiche/*/6 steps")
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def cancel(step: int, total: int) -> None:
        if step == 3:
            raise CANCEL

    settings = TrainingSettings(text_encoder_rate=0.01, save_every_steps=1)
    plain_inputs.queue("sd15", settings=settings, steps=6)
    undisturbed = files()
    output = tmp_path / "second"
    monkeypatch.setattr(folder_paths, "output_directory", str(output))
    with pytest.raises(CANCEL), progress(cancel):
        plain_inputs.queue("sd15", settings=settings, steps=6)
    plain_inputs.queue("sd15", settings=settings, steps=6)
    assert files() == undisturbed


def test_the_rate_is_part_of_the_run():
    rates = (0.0, 0.01, 0.02)
    runs = [
        plain_inputs.identity("sd15", settings=TrainingSettings(text_encoder_rate=rate))
        for rate in rates
    ]
    assert len(set(runs)) == 3


def test_halves_are_made_one_with_their_text_encoder_layers(caplog):
    content, style = (
        trained_half(role=role, run_name=role).result[0] for role in ("content", "style")
    )
    assert text_layers(content).keys() == text_layers(style).keys()
    tuned = {**joint_inputs("sd15"), "clip": tiny_clip()}

    def made(settings):
        inputs = make_inputs([content], [style], **tuned, settings=settings)
        with torch.inference_mode():
            return Make.PREPARE_CLASS_CLONE(None).execute(**inputs).result[0][0]

    lora = made(RATE)
    assert len(text_layers(lora)) == 8
    through_core(tiny("sd15", inference=True), tiny_clip(), lora, caplog)
    with pytest.raises(ValueError, match="text_encoder_rate 0; set it in Training Settings"):
        made(TrainingSettings())


def test_halves_without_text_encoder_layers_are_not_given_some():
    content, style = (
        trained_half(role=role, run_name=role, settings=TrainingSettings()).result[0]
        for role in ("content", "style")
    )
    inputs = make_inputs(
        [content], [style], **{**joint_inputs("sd15"), "clip": tiny_clip()}, settings=RATE
    )
    with pytest.raises(ValueError, match="got halves without layers"), torch.inference_mode():
        Make.PREPARE_CLASS_CLONE(None).execute(**inputs)


def test_style_prompts_read_the_styled_one_with_the_style_s_text_encoder():
    clip = tiny_clip()
    lora = pair_inputs.queue("sd15", clip=clip, settings=RATE).result[0]
    plain, styled, text = style_prompts(clip, "a ball", "", lora)
    assert torch.equal(plain[0][0], encode_prompt(clip, "a ball")[0][0])
    assert (styled[0][0] - encode_prompt(clip, text)[0][0]).abs().max() > 1e-4


def test_what_cannot_be_trained_is_refused_by_name():
    with pytest.raises(ValueError, match="must be clip_l or clip_g, got umt5xxl"):
        plain_inputs.queue("sd15", clip=clip_of("wan"), settings=RATE)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_checkpoint_without_a_text_encoder_is_told_plainly(trainer):
    with pytest.raises(ValueError, match="a text encoder is needed to read the prompt, got none"):
        TRAINERS[trainer](clip=None)


def test_encoded_captions_cannot_train_it():
    latents = [{"samples": torch.zeros(1, 4, 4, 4)}]
    with pytest.raises(ValueError, match="got conditioning that is encoded already"):
        plain_inputs.queue(
            "sd15",
            **{"images": [], "captions": [], "latents": latents},
            conditioning=[[[torch.zeros(1, 4, 768), {}]]],
            settings=RATE,
        )
