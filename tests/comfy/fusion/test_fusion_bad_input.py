"""What fusion says of bad input, each in one sentence, before anything is read or drawn."""

import pytest
import torch
from fusion_inputs import queue_fusion, two_concepts
from fusion_refusals import (
    NOTES,
    REFUSED_INPUTS,
    REFUSED_SAMPLING,
    assert_refused,
    attempt,
    disjoint_loras,
)
from pack.nodes.fusion import text as fusion_text
from pack.nodes.fusion.stages import Stages
from tiny import tiny_clip


@pytest.fixture(scope="module")
def wires():
    return two_concepts()


@pytest.fixture
def unread(monkeypatch):
    """Nothing may be read or drawn."""

    def never(self):
        raise AssertionError("bad input must be refused before anything is read")

    monkeypatch.setattr(Stages, "run", never)


@pytest.mark.parametrize(("make", "changes", "says"), REFUSED_INPUTS.values(), ids=REFUSED_INPUTS)
def test_what_cannot_be_fused_is_refused_before_anything_is_read(
    wires, unread, make, changes, says
):
    assert_refused(lambda: attempt(wires, make, changes), says)


@pytest.mark.parametrize(
    ("make", "changes", "says"), REFUSED_SAMPLING.values(), ids=REFUSED_SAMPLING
)
def test_numbers_that_are_not_finite_name_layer_and_prompt(wires, make, changes, says):
    assert_refused(lambda: attempt(wires, make, changes), says)


def test_a_context_that_is_not_finite_names_layer_and_prompt(wires, monkeypatch):
    (_, (plain,)) = wires
    broken = [[torch.full((1, 77, 768), float("nan")), {}]]
    monkeypatch.setattr(fusion_text, "conditioning_of", lambda clip, concept, prompt: broken)
    says = "context of layer 0 at the prompt 'a photo of a red boat' of 'boat' must be finite"
    with pytest.raises(ValueError, match=says):
        fusion_text.context_rows(tiny_clip(), plain, 4, lambda: None)


def noted(wires, case):
    make, changes, notes = NOTES[case]
    out = attempt(wires, make, changes).result
    for note in notes:
        assert note in out[4]
    return out


def test_one_concept_is_given_back_as_it_is(wires, unread):
    ((trained,), (plain,)) = wires
    assert noted(wires, "one concept")[2] is trained.lora
    # an ordinary LoRA's strength is in the file, which the stock loader takes at 1
    weaker = queue_fusion(wires[1:]).result[2]
    key = next(key for key in weaker if "lora_up" in key)
    down, alpha = key.replace("lora_up", "lora_down"), key.partition(".")[0] + ".alpha"
    found = weaker[key] @ weaker[down] * weaker[alpha] / len(weaker[down])
    own = plain.lora
    wanted = 0.7 * own[key] @ own[down] * own[alpha] / len(own[down])
    torch.testing.assert_close(found, wanted)


def test_identical_concepts_count_once(wires, unread):
    assert noted(wires, "the same concept twice")[2] is wires[0][0].lora


def test_weight_0_leaves_out(wires, unread):
    noted(wires, "a concept of weight 0")


def test_no_damping_on_singular_statistics(wires):
    out = noted(wires, "no damping on singular statistics")
    assert {layer.solver for layer in out[5].layers if layer.stage == "text"} == {"eigenvalues"}
    assert all(torch.isfinite(value).all() for value in out[2].values())
    for layer in out[5].layers:
        assert layer.norm < 2 * sum(layer.norms)


def test_no_common_layer(wires):
    out = noted(wires, "no common layer")
    assert {*out[2]} == {key for wire in disjoint_loras(wires) for key in wire[0].lora}
