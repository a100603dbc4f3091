"""Statistics that lie on disk: what is found again, taken away, added, and kept by an interrupt."""

import comfy.model_management
import pytest
import torch
from fusion_inputs import NAME, output_folder, plain_lora, queue_fusion, two_concepts, wordless
from pack.nodes.bridge import fusion_run
from pack.nodes.bridge.fusion_stages import Stages
from pack.training.fusion_store import FusionStore
from test_gates import hook_count, relative
from tiny import restore_shared, tiny

EACH = "a Gram per concept"


@pytest.fixture(scope="module")
def three():
    third = wordless(plain_lora(tiny(NAME), 7, text=False), "a sks tower", name="tower")
    return [*two_concepts(), third]


@pytest.fixture
def folder(tmp_path):
    output_folder(tmp_path)
    return tmp_path / "pastiche"


def passes(out):
    return [stage.passes for stage in out.result[5].stages]


def queue(wires, **changes):
    return queue_fusion(wires, **{"steps": 1, "statistics": "sums", **changes})


def same(one, other):
    """Two fusions change every layer alike."""
    ours, theirs = one.result[2], other.result[2]
    assert list(ours) == list(theirs)
    for key in ours:
        if "lora_up" in key:
            down = key.replace("lora_up", "lora_down")
            assert relative(ours[key] @ ours[down], theirs[key] @ theirs[down]) < 1e-4


@pytest.mark.parametrize("mode", ["own", "paper"])
def test_a_concept_less_is_a_fusion_without_it(three, folder, mode):
    queue(three, activations=mode, statistics=EACH)
    fewer = queue(three[:2], activations=mode, statistics=EACH)
    # paper draws under the fused earlier stages, which have changed; own draws nothing
    assert passes(fewer) == ([0, 0, 0] if mode == "own" else [0, 2, 2])
    same(fewer, queue(three[:2], activations=mode, statistics="nothing"))
    assert not list(folder.glob("fusion-*"))


def test_own_statistics_grow_by_one_concept_at_a_time(three, folder):
    assert passes(queue(three[:2])) == [2, 2, 2]
    again = queue(three[:2], damping=0.1)
    assert passes(again) == [0, 0, 0]
    assert [stage.found for stage in again.result[5].stages] == [2, 2, 2]
    more = queue(three)
    assert passes(more) == [1, 1, 1]
    for before, after in zip(again.result[5].stages[::2], more.result[5].stages[::2], strict=True):
        assert after.statistics == before.statistics  # memory does not grow with concepts
    heavier = [
        three[0],
        three[1],
        wordless(three[2][0].lora, "a sks tower", name="tower", weight=3),
    ]
    assert passes(queue(heavier)) == [1, 0, 1]  # its share of the sums, not its contexts
    assert not list(folder.rglob("*.gram.safetensors"))
    same(more, queue(three, statistics="nothing"))


def test_an_interrupt_keeps_the_concepts_that_are_done(three, folder, monkeypatch):
    inner, drawn = Stages._draw, []

    def draw(self, member, watch, before):
        drawn.append(member.concept.name)
        if len(drawn) == 2:
            comfy.model_management.interrupt_current_processing()
        inner(self, member, watch, before)

    monkeypatch.setattr(Stages, "_draw", draw)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        queue(three[:2])
    assert hook_count(tiny(NAME)) == 0
    assert not [path for path in folder.rglob("*.tmp")]
    restore_shared()
    done = queue(three[:2])
    assert passes(done) == [0, 0, 1]
    same(done, queue(three[:2], statistics="nothing"))


def test_a_damaged_file_is_collected_again(three, folder):
    queue(three[:2])
    for path in folder.rglob("sum.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    assert passes(queue(three[:2])) == [2, 0, 2]


def test_a_full_disk_costs_the_statistics_alone(three, folder, monkeypatch):
    monkeypatch.setattr(fusion_run.shutil, "disk_usage", lambda path: type("d", (), {"free": 1000}))
    out = queue(three[:2])
    assert "the statistics are not kept: they need" in out.result[4]
    monkeypatch.undo()

    def full(self, *args):
        raise RuntimeError("'sum.safetensors' needs 1.0 MB, got: No space left on device")

    monkeypatch.setattr(FusionStore, "keep_sum", full)
    again = queue(three[:2])
    assert "the statistics are not kept: 'sum.safetensors' needs" in again.result[4]
    assert all(torch.equal(out.result[2][key], again.result[2][key]) for key in out.result[2])
