"""Halves and joint training where factors are singular or get no gradient: no crash, said once."""

from pathlib import Path

import folder_paths
import pytest
import torch
from half_inputs import half, joint_inputs, make, trained
from pack.lora_ops.parametrizations.partly_learnable import split
from pack.training import TrainingSettings
from pack.training.files.half import half_layers, half_metadata
from pack.training.settings import OPTIMIZERS


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_factor_without_gradient_is_left_as_it_is(optimizer, output):
    """Without auxiliary pictures nothing moves the partner."""
    settings = TrainingSettings(optimizer=optimizer)
    first, last = (half(steps=steps, settings=settings).result[0] for steps in (1, 3))
    for layer, factors in half_layers(last).items():
        then, now = split(half_layers(first)[layer]), split(factors)
        assert torch.equal(now["up"], then["up"])
        assert not now["up"].any()
        assert factors.down.isfinite().all()
    for layer, factors in half_layers(trained("style")).items():
        assert not torch.equal(split(factors)["up"], split(half_layers(first)[layer])["up"])


@pytest.mark.parametrize("optimizer", ["Scaled AdamW", "Scaled SGD"])
def test_a_singular_gram_without_damping_is_said_once(optimizer, output):
    settings = TrainingSettings(optimizer=optimizer, damping=0.0)
    node = half(start="exact", rank=4, settings=settings, steps=4)
    (text,) = node.ui["text"]
    assert text.count("pseudo-inverse") == 1
    assert all(bool(tensor.isfinite().all()) for tensor in node.result[0].values())
    assert half_metadata(node.result[0]).role == "content"


def test_joint_training_of_singular_factors_is_said_once(output):
    ours, other = (trained(role, start="exact", rank=4) for role in ("content", "style"))
    settings = TrainingSettings(damping=0.0)
    node = make([ours], [other], **joint_inputs(), settings=settings)
    assert node.ui["text"][0].count("pseudo-inverse") == 1
    assert all(bool(tensor.isfinite().all()) for tensor in node.result[0][0].values())


def test_damping_says_nothing(output):
    settings = TrainingSettings(optimizer="Scaled AdamW")
    (text,) = half(start="exact", rank=4, settings=settings).ui["text"]
    assert "pseudo-inverse" not in text
