"""Bad pictures, prompts and settings: one plain sentence, nothing trained, nothing lost."""

import errno
import os
import shutil
from pathlib import Path

import folder_paths
import pytest
import skimage.data
import torch
from comfy.sd import CLIP, VAE
from pack.nodes.pair.frames import fit_pair
from pack.training import TrainingSettings
from pack.training.runs import run_store
from pair_inputs import picture, progress, queue
from pair_refusals import REFUSED, SMALL, photograph
from tiny import tiny, tiny_vae, weights_hash
from torch import Tensor


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence(case, output):
    changes, message = REFUSED[case]
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    with progress() as steps, pytest.raises(ValueError, match=message) as caught:
        queue(**changes)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    assert steps == []
    assert list(output.glob("pastiche/*")) == []


def test_a_rank_that_does_not_fit_is_refused_before_anything_is_encoded(monkeypatch):
    def encode(*args):
        raise AssertionError("nothing must be encoded")

    monkeypatch.setattr(VAE, "encode", encode)
    monkeypatch.setattr(CLIP, "encode_from_tokens_scheduled", encode)
    with pytest.raises(ValueError, match="set rank to 64 or less"):
        queue(rank=65)


@pytest.mark.parametrize(
    ("before", "after", "trained"),
    [
        (("astronaut", "RGB"), ("astronaut", "grey"), "32 x 32"),
        (("astronaut", "alpha"), ("coffee", "RGB"), "32 x 32"),
        (("coffee", "odd"), ("chelsea", "odd"), "48 x 32"),
        (("rocket", "grey and alpha"), ("camera", "RGB"), "48 x 32"),
        (("rocket", "RGB"), ("retina", "odd"), "48 x 32"),
    ],
)
def test_photographs_of_other_sizes_and_kinds_are_trained(before, after, trained):
    node = queue(
        before=photograph(*before), after=photograph(*after), settings=SMALL, steps=1, style_start=0
    )
    assert len(node.result[2]["loss"]) == 1
    text = node.ui["text"][0]
    assert "pair 1 trained at" in text
    assert text.split("pair 1 trained at ")[1].startswith(trained), text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one pixel", "at least 16 pixels on each side, got 1 x 1 for after 1"),
        ("one row", "at least 16 pixels on each side, got 512 x 1 for after 1"),
        ("NaN", "got NaN or infinity in after 1"),
    ],
)
def test_spoilt_photographs_are_refused(kind, message, output):
    with pytest.raises(ValueError, match=message):
        queue(before=photograph("astronaut"), after=photograph("astronaut", kind), settings=SMALL)
    assert not list(output.rglob("*.*"))


def test_a_vae_that_gives_nan_names_the_precision_that_helps(output):
    state = {key: value.clone() for key, value in tiny_vae(16).get_sd().items()}
    first = next(key for key in state if "encoder" in key and _is_matrix(state[key]))
    state[first].fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"got NaN from one in torch.float32; .*--bf16-vae"):
        queue(vae=VAE(sd=state))
    assert list(output.glob("pastiche/*")) == []


def _is_matrix(value: Tensor) -> bool:
    return value.ndim > 1


def test_a_read_only_output_is_said_before_training(output):
    output.mkdir()
    (output / "pastiche").write_text("")  # a file in the folder's place: no rights can be missing
    with progress() as steps, pytest.raises(RuntimeError, match=r"run's folder .*writable, got"):
        queue()
    assert steps == []


def test_a_full_disk_is_said_before_training(output, monkeypatch):
    usage = shutil.disk_usage(output.parent)._replace(free=10)
    monkeypatch.setattr(run_store.shutil, "disk_usage", lambda path: usage)
    with (
        progress() as steps,
        pytest.raises(RuntimeError, match=r"free space, got 0 MiB; free some"),
    ):
        queue()
    assert steps == []


def test_a_disk_that_fills_up_during_training_costs_no_training(output, monkeypatch):
    def write(path: Path, *pieces: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_store, "write_new", write)
    model = tiny("sd3")
    before = weights_hash(model)
    node = queue(model=model)
    style, _, losses = node.result
    assert len(losses["loss"]) == 3
    assert any(tensor.any() for key, tensor in style.items() if "lora_B" in key)
    assert "trained, but not stored in" in node.ui["text"][0]
    assert "No space left" in node.ui["text"][0]
    (run,) = (output / "pastiche").iterdir()
    assert [path.name for path in run.rglob("*.safetensors")] == ["step_00000003.safetensors"]
    assert weights_hash(model) == before
    monkeypatch.undo()
    monkeypatch.setattr(folder_paths, "output_directory", str(output))
    with progress() as steps:
        again = queue(model=model)
    assert steps == []
    said = again.ui["text"][0].split("\n")
    assert "goes on from step 3" in said
    assert said[-1].startswith("stored in ")
    assert all(torch.equal(style[key], tensor) for key, tensor in again.result[0].items())


def test_pictures_of_any_size_and_kind_are_trained():
    grey, alpha = picture(37, 53, seed=1, channels=1), picture(90, 41, seed=2, channels=4)
    node = queue(before=[grey, picture(33, 33)], after=[alpha, picture(16, 200, seed=3)])
    assert len(node.result[1]) == 2
    text = node.ui["text"][0]
    assert "pair 1 trained at 32 x 16" in text
    assert "pair 2 trained at 16 x 16" in text


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [("astronaut", "camera"), ("coffee", "rocket"), ("chelsea", "chelsea")]
)
def test_photographs_fit_onto_one_frame(before, after, mirrored):
    images = []
    for name in (before, after):
        pixels = torch.from_numpy(getattr(skimage.data, name)().copy()).float() / 255
        images.append(pixels if pixels.ndim == 3 else pixels[..., None])
    if mirrored:
        images.reverse()
    pair = fit_pair(*images, resolution=256, multiple=16)
    assert pair.before.size == pair.after.size
    assert all(side % 16 == 0 for side in pair.before.size)
    assert min(pair.before.size) <= 256 < min(pair.before.size) + 16
    for fitted, image in zip((pair.before, pair.after), images, strict=True):
        assert fitted.pixels.shape[-1] == 3
        assert 0 <= fitted.pixels.min() <= fitted.pixels.max() <= 1
        assert fitted.original_size == tuple(image.shape[:2])
        assert fitted.pixels.mean().item() == pytest.approx(image.mean().item(), abs=0.01)


def test_nothing_is_enlarged():
    pair = fit_pair(picture(70, 90)[0], picture(40, 400)[0], resolution=512, multiple=8)
    assert pair.before.size == pair.after.size == (40, 48)
    small = fit_pair(picture(70, 90)[0], picture(70, 90, seed=1)[0], 512, 8)
    assert small.before.size == (64, 88)
    assert small.before.crop == (3, 1)
    torch.testing.assert_close(small.before.pixels, picture(70, 90)[0, 3:67, 1:89])
    assert "none is enlarged" in small.note


def test_transparent_parts_become_white_and_grey_becomes_three_channels():
    image = torch.zeros(32, 32, 4)
    image[:, 16:, 3] = 1.0
    pair = fit_pair(image, torch.full((32, 32, 1), 0.25), 512, 8)
    assert (pair.before.pixels[:, :16] == 1).all()
    assert (pair.before.pixels[:, 16:] == 0).all()
    assert (pair.after.pixels == 0.25).all()
    grey_alpha = fit_pair(torch.cat([image[..., :1], image[..., 3:]], -1), image, 512, 8)
    assert torch.equal(grey_alpha.before.pixels, pair.before.pixels)


def test_resolution_is_the_shorter_side():
    settings = TrainingSettings(resolution=16)
    node = queue(before=picture(32, 64), after=picture(32, 64, seed=1), settings=settings)
    assert "pair 1 trained at 32 x 16" in node.ui["text"][0]
