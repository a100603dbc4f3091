"""What the concept trainer says of bad input: one plain sentence before anything is trained."""

import copy
from dataclasses import replace

import folder_paths
import pytest
from tiny import tiny_clip
from train_concept_refusals import REFUSED, UNFIT, UNNAMED
from training_concepts import checked_trainer, new_trainer, queue


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        queue("sd15", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "changes", "message"), UNFIT.values(), ids=UNFIT)
def test_settings_that_the_base_has_no_layers_for_are_refused(family, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        queue(family, **changes())
    assert "\n" not in str(error.value)


def test_a_caption_without_the_name_gets_it_and_says_so():
    plan = checked_trainer("sd15", captions=UNNAMED)
    assert [one.caption for one in plan.dataset] == ["<boat1>, a red boat", "the <BOAT1> at night"]
    out = queue("sd15", captions=UNNAMED, steps=1)
    assert "<boat1> was put in front of the captions without it: picture 1" in out.ui["text"][0]


def test_a_rate_for_a_text_encoder_that_cannot_be_trained_is_refused_by_name():
    trainer = new_trainer("sd15", text_rate=0.1)
    trainer = replace(trainer, base=replace(trainer.base, clip=_only_t5()))
    with pytest.raises(ValueError, match=r"text_rate is for clip_l and clip_g, got 0.1 .* t5xxl"):
        _ = trainer.text_learning_rate
    assert replace(trainer, text_rate=0.0).text_learning_rate == 0


def _only_t5():
    clip = copy.copy(tiny_clip())
    clip.tokenizer = copy.copy(clip.tokenizer)
    tokenizer = copy.copy(clip.tokenizer.clip_l)
    tokenizer.embedding_key = "t5xxl"
    del clip.tokenizer.clip_l
    clip.tokenizer.t5xxl = tokenizer
    return clip
