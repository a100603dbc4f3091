"""A run works each fact of its base out once: counted in whole runs on a tiny model."""

import sys
from collections import Counter
from dataclasses import fields

import folder_paths
import pytest
from half_inputs import b4m
from pack.nodes.bridge import conditioning, families
from pack.nodes.pair.train import PairTrainer
from pack.nodes.pictures import fitted_image
from pack.nodes.trainer import base as trainer_base
from pack.nodes.trainer import target_layers
from pack.training import TrainingSettings
from pair_inputs import queue


@pytest.fixture
def calls(monkeypatch, tmp_path) -> Counter:
    """Count what a run asks of its base, wherever the pack calls it from."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    counts: Counter = Counter()

    def counted(module, name, what, everywhere=True) -> None:
        original = getattr(module, name)

        def call(*args, **kwargs):
            counts[what(*args, **kwargs)] += 1
            return original(*args, **kwargs)

        pack = [found for key, found in sys.modules.items() if key.startswith("pack.nodes")]
        for place in pack if everywhere else [module]:
            if vars(place).get(name) is original:
                monkeypatch.setattr(place, name, call)

    counted(families, "identify", lambda model: "family")
    counted(target_layers, "trainable_layers", lambda *args: "layers")
    counted(conditioning, "encode_prompt", lambda clip, text: ("prompt", text))
    counted(
        fitted_image,
        "encode_picture",
        lambda vae, image, mirrored: ("picture", image.pixels.sum().item(), mirrored),
    )
    for name in ("model_digest", "clip_digest", "vae_digest"):
        counted(trainer_base, name, lambda *args, name=name: name, everywhere=False)
    return counts


def of_kind(calls: Counter, kind: str) -> dict:
    return {key: count for key, count in calls.items() if isinstance(key, tuple) and key[0] == kind}


def test_a_pair_run_works_everything_out_once(calls):
    queue(steps=2, settings=TrainingSettings(caption_dropout=0.5))
    for once in ("family", "layers", "model_digest", "clip_digest", "vae_digest"):
        assert calls[once] == 1, once
    assert of_kind(calls, "prompt") == {
        ("prompt", text): 1 for text in ("a red ball", "a red ball in ink", "")
    }
    assert list(of_kind(calls, "picture").values()) == [1, 1]


def test_all_stages_of_break_for_make_share_what_is_worked_out(calls):
    b4m(
        steps=1,
        make_steps=1,
        other_styles="a teapot in sticker style",
        settings=TrainingSettings(resolution=64),
    )
    for once in ("family", "layers", "model_digest", "clip_digest", "vae_digest"):
        assert calls[once] == 1, once
    prompts = of_kind(calls, "prompt")
    assert {text for _, text in prompts} == {
        "a photo of snq ball",
        "a box in w@z style",
        "a teapot in sticker style",
        "",
    }
    assert set(prompts.values()) == {1}
    pictures = of_kind(calls, "picture")
    assert list(pictures.values()) == [1, 1, 1]  # a content, a style, a drawn one


def test_a_trainer_has_its_inputs_under_their_own_names():
    """The node's inputs, the base and nothing else; there is no class for a request or a plan."""
    from pack.nodes.pair.nodes import TrainPair

    inputs = {item.id for item in TrainPair.GET_SCHEMA().inputs} - {"model", "clip", "vae"}
    assert {field.name for field in fields(PairTrainer)} == inputs | {"base", "node_id"}
