"""The plain LoRA trainer's node on tiny real models, from pictures to a LoRA that core loads."""

import logging
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_dataset import MakeTrainingDataset, ResolutionBucket
from comfy_extras.nodes_train import LossGraphNode
from gated_loras import hook_count
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.text.training_cond import Framing, training_cond
from pack.nodes.trainer.examples import latent_mask
from pack.nodes.trainer.target_layers import training_sites
from pack.training import FAMILIES, Gate, TrainingSettings
from pair_inputs import RandomFeatures, picture, progress, vae_for
from plain_inputs import checked_trainer, identity, new_trainer, queue
from tiny import tiny, tiny_clip, tiny_cond, tiny_latent, tiny_vae, weights_hash

import nodes as core_nodes


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def dataset(name: str, clip=None, captions=("a red ball", "a blue box"), **pictures):
    """Core's training dataset of the tests' two pictures."""
    images = [picture(seed=1), picture(32, 32, seed=2)]
    with torch.inference_mode():
        made = MakeTrainingDataset.execute(
            images, [vae_for(name)], [clip or tiny_clip()], list(captions)
        )
    return made.result


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_pictures_are_trained_and_core_loads_the_result(name, output, caplog):
    model = tiny(name, inference=True)
    before = weights_hash(model)
    clip = RandomFeatures(model) if name == "sdxl" else tiny_clip()
    with progress() as steps:
        lora, losses = queue(name, model=model, clip=clip).result
    assert steps == [1, 2, 3]
    assert {curve: len(values) for curve, values in losses.items()} == {"loss": 3, "lora": 3}
    assert weights_hash(model) == before
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    file = f"plain_{name}.safetensors"
    safetensors.torch.save_file(dict(lora), folder / file, lora.metadata)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        (patched,) = core_nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
    assert "not loaded" not in caplog.text.lower()
    places = {(key, patch[3]) for key, found in patched.patches.items() for patch in found}
    assert len(places) == len(training_sites(model, "attention"))


def test_metadata_says_what_was_trained():
    lora, _ = queue(seed=8).result
    expected = {
        "modelspec.architecture": "stable-diffusion-3/lora",
        "ss_base_model_version": "sd3",
        "ss_num_train_images": "2",
        "pastiche.method": "plain",
        "pastiche.role": "plain",
        "pastiche.images": "2",
        "pastiche.masked": "false",
        "pastiche.captions": "a red ball\na blue box",
        "pastiche.steps": "3",
        "pastiche.rank": "2",
        "pastiche.learning_rate": "0.01",
        "pastiche.seed": "8",
        "pastiche.resolution": "1024",
        "pastiche.base_patched": "false",
    }
    assert expected.items() <= lora.metadata.items()
    assert all(isinstance(value, str) for value in lora.metadata.values())
    alphas = [tensor for key, tensor in lora.items() if key.endswith("alpha")]
    assert {float(alpha) for alpha in alphas} == {2.0}


def test_the_losses_are_drawn_by_core():
    assert LossGraphNode.execute(queue().result[1], "loss", prompt=None, extra_pnginfo=None).ui


def test_the_node_shows_pictures_and_values():
    wide = picture(32, 200, seed=4)
    shown = queue(images=[picture(40, 50), picture(40, 50), wide], captions="a ball", rank=0).ui
    (text,) = shown["text"]
    assert "SD3: steps 3, rank 16 (default: ours" in text
    assert "3 pictures: 2 at 48 x 32, 1 at 128 x 32, mirrored: never" in text
    assert "picture 3 is cut to 64% of itself" in text
    assert "stored in" in text
    assert len(shown["images"]) == 3


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_zero_is_the_family_default_and_is_said_to_be(family, monkeypatch):
    monkeypatch.setattr("pack.nodes.trainer.base.identify_for_training", lambda model: family)
    plan = new_trainer(steps=0, rank=0, learning_rate=0.0)
    defaults = family.plain
    assert plan.config.steps == defaults.steps
    assert plan.config.rank == defaults.rank
    assert plan.config.learning_rate == defaults.learning_rate
    assert plan.config.weight_decay == defaults.weight_decay
    assert plan.config.timesteps == defaults.timesteps
    assert plan.resolution == defaults.resolution
    assert plan.values_line(1).count(f"(default: {defaults.source})") == 3
    chosen = TrainingSettings(timesteps="shifted", weight_decay=0.5, resolution=64)
    plan = checked_trainer(settings=chosen)
    assert (plan.config.timesteps, plan.config.weight_decay, plan.resolution) == (
        "shifted",
        0.5,
        64,
    )


def test_an_equal_graph_is_trained_once(output):
    with progress() as steps:
        first = queue().result
    assert steps == [1, 2, 3]
    with progress() as steps:
        again = queue(model=tiny("sd3", fresh=True))
    assert steps == []
    assert equal(first[0], again.result[0])
    assert first[1] == again.result[1]
    assert "trained before, taken from" in again.ui["text"][0]


def test_more_steps_go_on_and_end_as_an_undisturbed_run_does(output, tmp_path, monkeypatch):
    queue(steps=4)
    with progress() as steps:
        extended = queue(steps=6)
    assert steps == [5, 6]
    assert "goes on from step 4" in extended.ui["text"][0]
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "straight"))
    with progress() as steps:
        straight = queue(steps=6)
    assert steps == [1, 2, 3, 4, 5, 6]
    files = [
        next(place.glob("pastiche/*/6 steps/lora.safetensors")).read_bytes()
        for place in (output, tmp_path / "straight")
    ]
    assert files[0] == files[1]
    assert extended.result[1] == straight.result[1]


def test_an_interrupted_run_goes_on_by_queueing_it_again(output, tmp_path, monkeypatch):
    def interrupt(value: int, total: int) -> None:
        if value == 2:
            comfy.model_management.interrupt_current_processing()

    with (
        progress(interrupt),
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        queue(steps=5)
    with progress() as steps:
        resumed = queue(steps=5).result
    assert 1 < steps[0] <= 3
    assert steps[-1] == 5
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "straight"))
    straight = queue(steps=5).result
    assert equal(resumed[0], straight[0])
    assert resumed[1] == straight[1]


def test_batches_take_pictures_of_different_sizes():
    with progress() as steps:
        lora, losses = queue(settings=TrainingSettings(batch_size=2, accumulation=2)).result
    assert steps == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(losses["loss"])))
    assert any(tensor.any() for key, tensor in lora.items() if "lora_B" in key)


def test_every_caption_goes_to_its_picture():
    trainer = checked_trainer(captions=["one", "two"])
    examples = trainer.prepare(3)[0].examples
    for shown, caption in zip(examples, ("one", "two"), strict=True):
        expected = training_cond(
            trainer.base.model, encode_prompt(trainer.base.clip, caption), shown.latent
        )
        for name, cond in expected.model_conds.items():
            if isinstance(cond.cond, torch.Tensor):
                torch.testing.assert_close(shown.cond.model_conds[name].cond, cond.cond)
    one = queue(captions="one").result[1]
    assert one == queue(captions=["one", "one"]).result[1]
    assert one != queue(captions=["one", "two"]).result[1]


def test_dropped_captions_are_the_empty_one():
    dropped = TrainingSettings(caption_dropout=1.0)
    with_captions = queue(settings=dropped).result[1]
    assert with_captions == queue(captions=["", ""], settings=dropped).result[1]
    assert with_captions == queue(captions=["", ""]).result[1]
    assert with_captions != queue().result[1]


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_only_what_the_mask_shows_is_learnt(name):
    mask = torch.zeros(1, 32, 48)
    mask[:, :, :16] = 1.0
    trainer = checked_trainer(name, images=[picture(seed=1)], captions="a ball", masks=[mask])
    (shown,) = trainer.prepare(3)[0].examples
    assert shown.mask.shape == (1, 4, 6)
    assert shown.mask[0].tolist() == [[1, 1, 0, 0, 0, 0]] * 4
    masked = queue(name, images=picture(seed=1), captions="a ball", masks=[mask]).result
    plain = queue(name, images=picture(seed=1), captions="a ball").result
    white = queue(name, images=picture(seed=1), captions="a ball", masks=[mask * 0 + 1]).result
    assert masked[1] != plain[1]
    assert white[1] == plain[1]
    assert equal(white[0], plain[0])
    outside = TrainingSettings(outside_mask=1.0)
    everywhere = queue(
        name, images=picture(seed=1), captions="a ball", masks=[mask], settings=outside
    ).result
    assert everywhere[1]["loss"] == pytest.approx(plain[1]["loss"], rel=1e-4)


def test_a_mask_serves_all_frames_of_a_video_model():
    mask = torch.zeros(32, 48)
    mask[:, :16] = 1.0
    latent = tiny_latent(tiny("wan21"), 4, 6)["samples"][0]
    counts = latent_mask(mask, latent)
    assert counts.shape == (1, *latent.shape[1:])
    assert counts[0, 0].tolist() == [[1, 1, 0, 0, 0, 0]] * 4


def test_masks_turn_with_their_pictures_and_shrink_with_them():
    image, mask = picture(64, 96, seed=3), torch.zeros(1, 64, 96)
    mask[:, :, :32] = 1.0
    settings = TrainingSettings(flip="random", resolution=48)
    trainer = checked_trainer(images=image, captions="x", masks=[mask], settings=settings)
    recipe, _ = trainer.prepare(3)
    (shown,), (mirrored,) = recipe.examples, recipe.mirrored
    assert shown.latent.shape[-2:] == shown.mask.shape[-2:] == (4, 6)
    assert shown.mask[0, 0].tolist() == pytest.approx([1, 1, 0, 0, 0, 0], abs=0.3)
    assert torch.equal(mirrored.mask, shown.mask.flip(-1))
    assert not torch.equal(mirrored.latent, shown.latent)


def test_randomly_mirrored_pictures_are_both_used():
    losses = {
        flip: queue(steps=6, settings=TrainingSettings(flip=flip)).result[1]["loss"]
        for flip in ("never", "always", "random")
    }
    assert losses["random"][0] in (losses["never"][0], losses["always"][0])
    assert losses["random"] not in (losses["never"], losses["always"])


@pytest.mark.parametrize("bucketed", [False, True])
def test_cores_datasets_train_what_the_same_pictures_do(bucketed):
    latents, conditioning = dataset("sd3")
    if bucketed:
        latents, conditioning = ResolutionBucket.execute(latents, conditioning).result
    given = {"images": [], "latents": latents, "conditioning": conditioning}
    from_latents = queue(**given).result
    from_images = queue().result
    assert from_latents[1]["loss"] == pytest.approx(from_images[1]["loss"], rel=1e-5)
    for key, tensor in from_images[0].items():
        torch.testing.assert_close(from_latents[0][key], tensor, rtol=1e-3, atol=1e-4)
    assert from_latents[0].metadata["pastiche.images"] == "2"


def test_the_id_follows_from_contents():
    reference = identity()
    latents, conditioning = dataset("sd3")
    given = {"images": [], "latents": latents, "conditioning": conditioning}
    mask = torch.ones(1, 32, 48)
    mask[:, :4] = 0.0
    other = {
        "caption": {"captions": ["a red ball", "a green box"]},
        "captions swapped": {"captions": ["a blue box", "a red ball"]},
        "picture": {"images": [picture(seed=1), picture(32, 32, seed=3)]},
        "mask": {"masks": [mask, torch.ones(1, 32, 32)]},
        "rank": {"rank": 3},
        "rate": {"learning_rate": 0.02},
        "seed": {"seed": 6},
        "timesteps": {"settings": TrainingSettings(timesteps="uniform")},
        "vae": {"vae": tiny_vae(16, seed=1)},
        "clip": {"clip": tiny_clip(seed=1)},
        "model": {"model": tiny("sd3", seed=1)},
        "dataset": given,
    }
    found = {name: identity(**changes) for name, changes in other.items()}
    assert len({reference, *found.values()}) == len(found) + 1
    assert identity(steps=9, run_name="another") == reference
    assert identity(masks=[torch.ones(1, 32, 48), torch.ones(1, 32, 32)]) == reference
    # Neither has a part in latents that come encoded.
    spared = identity(**given, vae=tiny_vae(16, seed=1), clip=tiny_clip(seed=1), captions="x")
    assert spared == found["dataset"]


@pytest.mark.parametrize(("name", "reads_it"), [("sd15", False), ("sdxl", True)])
def test_a_caption_s_pooled_vector_decides_where_the_model_reads_it(name, reads_it):
    """SD1.5's is made with a weight that no file holds: another in every process."""
    model = tiny(name, inference=True)
    text, options = tiny_cond(model)[0]

    def run(pooled: torch.Tensor) -> str:
        return identity(
            name,
            model=model,
            images=[],
            latents=[{"samples": torch.zeros(1, 4, 4, 4)}],
            conditioning=[[[text, {**options, "pooled_output": pooled}]]],
        )

    given = options.get("pooled_output", torch.zeros(1, 768))
    assert (run(given) != run(given + 1.0)) is reads_it


def test_sdxl_rows_carry_true_size_and_crop():
    model = tiny("sdxl")
    clip = RandomFeatures(model)
    trainer = checked_trainer(
        "sdxl", model=model, clip=clip, images=[picture(72, 61, seed=1)], captions="a ball"
    )
    (shown,) = trainer.prepare(3)[0].examples
    framing = Framing(61, 72, 0, 1, 56, 64)
    expected = training_cond(model, encode_prompt(clip, "a ball"), shown.latent, framing)
    torch.testing.assert_close(shown.cond.model_conds["y"].cond, expected.model_conds["y"].cond)
    assert shown.latent.shape == (4, 8, 7)


def test_previews_show_the_trained_lora():
    settings = TrainingSettings(preview_every=2, preview_prompt="a cone")
    _, scene = checked_trainer(settings=settings).prepare(3)
    assert scene.gates == scene.uncond_gates == {"lora": Gate()}
    assert scene.shape == (16, 4, 6)


def test_sampling_settings_of_the_toolbox_are_taken(output):
    settings = TrainingSettings(
        schedule="cosine",
        warmup=1,
        max_grad_norm=1.0,
        min_snr_gamma=5.0,
        noise_offset=0.1,
        ema_decay=0.9,
        timesteps="shifted",
        caption_dropout=0.5,
        targets="all linear",
        rows_per_pass=1,
        batch_size=2,
    )
    losses = queue(settings=settings).result[1]
    assert len(losses["loss"]) == 3
    assert all(torch.isfinite(torch.tensor(losses["loss"])))
