"""Break-for-Make's nodes on tiny real models: halves trained apart, made one, loaded by core."""

import logging
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import safetensors.torch
import torch
from gated_loras import hook_count
from half_inputs import b4m, half, joint_inputs, make
from pack.lora_ops.halves import join_layer
from pack.nodes.trainer.target_layers import training_sites
from pack.training import TrainingSettings
from pack.training.files.half import half_layers, half_metadata
from pack.training.settings import OPTIMIZERS
from pair_inputs import picture, progress
from tiny import tiny, weights_hash

import nodes as core_nodes


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def frozen_and_learnt(factors):
    rows, columns = factors.up.shape[0] // 2, factors.down.shape[1] // 2
    return (
        (factors.down[:, :columns], factors.up[:rows]),
        (factors.down[:, columns:], factors.up[rows:]),
    )


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "wan21"])
def test_halves_trained_apart_become_one_lora_that_core_loads(name, output, caplog):
    model = tiny(name, inference=True)
    before = weights_hash(model)
    others = {"auxiliary_images": [picture(seed=n) for n in (7, 8, 9)],
              "auxiliary_prompts": "a\nb\nc"}  # fmt: skip
    with progress() as steps:
        content, as_lora, losses = half(name, "content", model=model, **others).result
    assert steps == [1, 2, 3]
    assert losses.keys() == {"loss", "main", "auxiliary"}
    assert as_lora is content
    style = half(name, "style", model=model, seed=9, images=[picture(seed=4)], **others).result[0]
    assert weights_hash(model) == before
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training
    assert half_metadata(content).role == "content"
    assert half_metadata(style).role == "style"

    (lora,), _ = make([content], [style]).result
    ours, other, whole = half_layers(content), half_layers(style), half_layers(lora)
    assert whole.keys() == training_sites(model, "attention").keys()
    for layer, factors in whole.items():
        (down_frozen, up_frozen), (down, up) = frozen_and_learnt(factors)
        (first, second), (content_down, _) = frozen_and_learnt(ours[layer])
        (third, fourth), (_, style_up) = frozen_and_learnt(other[layer])
        assert torch.equal(first, third)
        assert torch.equal(second, fourth)
        assert torch.equal(down_frozen, third)
        assert torch.equal(up_frozen, fourth)
        assert torch.equal(down, content_down)
        assert torch.equal(up, style_up)

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    file = f"made_{name}.safetensors"
    safetensors.torch.save_file(dict(lora), folder / file, lora.metadata)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        (patched,) = core_nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
    assert "not loaded" not in caplog.text.lower()
    places = {(key, patch[3]) for key, found in patched.patches.items() for patch in found}
    assert len(places) == len(whole)


def test_auxiliary_pictures_are_drawn_from_prompts_once(output):
    small = {"settings": TrainingSettings(resolution=64), "auxiliary_prompts": "a ring\na tree"}
    made = half(**small)
    assert {"loss", "main", "auxiliary"} == made.result[2].keys()
    drawn = sorted((output / "pastiche" / "auxiliary").glob("*.png"))
    assert len(drawn) == 2
    times = [path.stat().st_mtime_ns for path in drawn]
    again = half(run_name="again", **small)
    assert equal(made.result[0], again.result[0])
    assert [path.stat().st_mtime_ns for path in drawn] == times
    assert "2 auxiliary ones, drawn by the base" in made.ui["text"][0]


def test_without_auxiliary_pictures_it_is_said(output):
    assert "without auxiliary pictures or prompts" in half().ui["text"][0]


def test_a_joint_training_starts_from_the_halves_and_leaves_the_frozen_ones(output):
    content, style = half(role="content").result[0], half(role="style", seed=2).result[0]
    (start,), _ = make([content], [style]).result
    (lora,), losses = make([content], [style], **joint_inputs()).result
    assert {curve: len(values) for curve, values in losses.items()} == {
        "loss": 3, "content": 3, "style": 3
    }  # fmt: skip
    began, ended = half_layers(start), half_layers(lora)
    for layer, factors in ended.items():
        (frozen, learnt), (was_frozen, was_learnt) = (
            frozen_and_learnt(factors), frozen_and_learnt(began[layer])
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(frozen, was_frozen, strict=True))
        for now, then in zip(learnt, was_learnt, strict=True):
            assert not torch.equal(now, then)
            assert (now - then).norm() < 0.5 * then.norm() + 1
    assert lora.metadata["pastiche.stages"] == "break, make with 3 steps"
    folder = next((output / "pastiche").glob("test make-*"))
    names = {path.stem for path in (folder / "3 steps").glob("*.safetensors")}
    assert names == {"lora", "content half", "style half"}


def test_strengths_scale_the_owned_parts_and_train_nothing_anew(output):
    content, style = half(role="content").result[0], half(role="style", seed=2).result[0]
    (whole,), _ = make([content], [style], **joint_inputs()).result
    with progress() as steps:
        weak = make([content], [style], content_strength=0.5, style_strength=2.0, **joint_inputs())
    assert steps == []
    (lora,), _ = weak.result
    layers = half_layers(whole)
    for layer, factors in half_layers(lora).items():
        expected = join_layer(layers[layer], layers[layer], "down", 0.5, 2.0)
        assert torch.equal(factors.down, expected.down)
        assert torch.equal(factors.up, expected.up)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_makes_and_their_results_differ(optimizer, output):
    content, style = half(role="content").result[0], half(role="style", seed=2).result[0]
    one = make([content], [style], optimizer=optimizer, **joint_inputs()).result[0][0]
    assert all(bool(tensor.isfinite().all()) for tensor in one.values())
    if optimizer != "AdamW":
        other = make([content], [style], optimizer="AdamW", **joint_inputs()).result[0][0]
        assert not equal(one, other)


def test_contents_and_styles_give_every_combination(output):
    model = tiny("sd3", inference=True)
    contents = [half(role="content", seed=n, model=model).result[0] for n in (1, 2)]
    styles = [
        half(role="style", seed=n, model=model, images=[picture(seed=n)]).result[0] for n in (3, 4)
    ]
    loras, _ = make(contents, styles).result
    singles = [make([c], [s]).result[0][0] for c in contents for s in styles]
    assert len(loras) == 4
    assert all(equal(one, other) for one, other in zip(loras, singles, strict=True))
    assert not equal(loras[0], loras[1])


def test_all_stages_at_once_equal_the_three_nodes(output):
    model = tiny("sd3", inference=True)
    with progress() as steps:
        result = b4m(model=model).result
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    lora, content, style, losses = result
    shared = {"model": model, "token": "snq", "prompt": ["a photo of snq ball"]}
    alone = half("sd3", "content", images=[picture(seed=1)], **shared).result[0]
    assert equal(content, alone)
    other = half(
        "sd3", "style", images=[picture(seed=3)], model=model, prompt=["a box in w@z style"]
    ).result[0]
    assert equal(style, other)
    tuned = {**joint_inputs(model=model), "style_prompt": ["a box in w@z style"], "steps": 2}
    assert equal(lora, make([alone], [other], **tuned).result[0][0])
    assert len(losses["loss"]) == 8
    assert {"content half main", "style half main", "make content", "make style"} < losses.keys()
    with progress() as steps:
        again = b4m(model=model).result
    assert steps == []
    assert equal(again[0], lora)


def test_halves_learn_with_every_target_and_make_finds_their_layers(output):
    settings = TrainingSettings(targets="all linear")
    content = half(role="content", settings=settings).result[0]
    style = half(role="style", settings=settings).result[0]
    (lora,), _ = make([content], [style], **joint_inputs()).result
    assert lora.keys() == content.keys()
    pattern = TrainingSettings(target_pattern="*attn*proj*")
    content, style = (half(role=r, settings=pattern).result[0] for r in ("content", "style"))
    (lora,), _ = make([content], [style], **joint_inputs()).result
    assert lora.keys() == content.keys()
