"""What Concept for Fusion says, and what of a fusion may be fused again."""

import logging

import pytest
from concept_for_fusion_refusals import (
    REFUSED_AGAIN,
    REFUSED_CONCEPTS,
    fuse_twice,
    prompts_without_trigger,
    run_concept_for_fusion,
)
from fusion_inputs import lora_to_fuse, queue_fusion, two_concepts
from fusion_refusals import assert_refused
from pack.nodes.fusion.nodes import ConceptForFusion
from pack.training.files.lora_state import LoraState


@pytest.fixture(scope="module")
def wires():
    return two_concepts()


@pytest.mark.parametrize(("inputs", "says"), REFUSED_CONCEPTS.values(), ids=REFUSED_CONCEPTS)
def test_concept_for_fusion_refuses(wires, inputs, says):
    with pytest.raises(ValueError, match=says) as error:
        run_concept_for_fusion(wires, inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "prompts"),
    [
        ({"modelspec.trigger_phrase": "sks dog"}, ("sks dog",)),
        ({"pastiche.style_words": "in ink"}, ("in ink",)),
        ({"ss_tag_frequency": '{"a": {"dog": 2, "sks": 9}}'}, ("sks",)),
    ],
)
def test_prompts_are_read_from_the_file(wires, metadata, prompts):
    lora = LoraState(wires[1][0].lora, metadata)
    ((found,),) = ConceptForFusion.execute("", 0.7, 1.0, "", lora=lora).result
    assert found.prompts == prompts
    assert (found.strength, found.weight, found.words) == (0.7, 1.0, 0)
    assert found.name.startswith("lora_")


def test_a_trigger_prompt_without_the_files_words_is_said(wires, caplog):
    with caplog.at_level(logging.WARNING):
        prompts_without_trigger(wires)
    assert "has none of the words that the LoRA's file names (zwx boat)" in caplog.text


def test_prompts_need_not_hold_the_commonest_part_of_captions(wires, caplog):
    tags = {"ss_tag_frequency": '{"a": {"a red zwx boat on sand": 2}}'}
    with caplog.at_level(logging.WARNING):
        lora_to_fuse(LoraState(wires[1][0].lora, tags), "a zwx boat at night")
    assert not caplog.text


def test_a_fused_file_may_be_fused_again(wires):
    (again,), twice = fuse_twice(wires)
    # without the prompt of the word, which the file does not hold
    assert again.prompts == ("a photo of a red boat",)
    assert max(layer.rank for layer in twice[5].layers) <= 8 + 3


@pytest.mark.parametrize(("make", "action", "message"), REFUSED_AGAIN.values(), ids=REFUSED_AGAIN)
def test_parts_of_a_fusion_are_refused(wires, make, action, message):
    out = queue_fusion(make(wires), steps=1).result
    assert_refused(lambda: action(out), [message])
