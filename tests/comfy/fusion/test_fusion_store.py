"""Statistics that lie on disk: what is found again, taken away, added, and kept by an interrupt."""

from contextlib import nullcontext

import comfy.model_management
import pytest
import torch
from full_disk import leave_no_space
from fusion_inputs import (
    NAME,
    lora_to_fuse,
    plain_lora,
    queue_fusion,
    set_output_folder,
    two_concepts,
)
from gated_loras import hook_count, relative
from pack.nodes.fusion import run as fusion_run
from pack.nodes.fusion import stages as fusion_stages
from pack.nodes.fusion.stages import Stages
from pack.training.runs.fusion_store import FusionStore
from pack.training.runs.lock import LOCK_FILE, run_lock
from pair_inputs import progress
from tiny import restore_shared, tiny

EACH = "a Gram per concept"


@pytest.fixture(scope="module")
def three():
    third = lora_to_fuse(plain_lora(tiny(NAME), 7, text=False), "a sks tower", name="tower")
    return [*two_concepts(), third]


@pytest.fixture
def folder(tmp_path):
    set_output_folder(tmp_path)
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
    assert [stage.reused for stage in again.result[5].stages] == [2, 2, 2]
    more = queue(three)
    assert passes(more) == [1, 1, 1]
    heavier = [
        three[0],
        three[1],
        lora_to_fuse(three[2][0].lora, "a sks tower", name="tower", weight=3),
    ]
    weighted = queue(heavier)
    assert passes(weighted) == [1, 0, 1]  # its share of the sums, not its contexts
    assert not list(folder.rglob("*.gram.safetensors"))
    same(weighted, queue(heavier, statistics="nothing"))
    same(more, queue(three, statistics="nothing"))


def test_memory_does_not_grow_with_concepts(three, monkeypatch):
    def statistics(wires):
        stages = queue(wires, statistics="nothing").result[5].stages
        return [stage.statistics_bytes for stage in stages if stage.stage != "cross"]

    fewer, more = statistics(three[:2]), statistics(three)
    assert fewer == more
    # without a place on disk they wait in memory, and are counted
    monkeypatch.setattr(fusion_run, "_scratch_folder", lambda: nullcontext(None))
    held = statistics(three[:2]), statistics(three)
    assert all(one > other for one, other in zip(held[0], fewer, strict=True))
    assert held[1][1] > held[0][1]


def test_wide_layers_keep_their_statistics(three, folder, monkeypatch):
    """Their span differs with the concepts: narrower, or of other rows, it needs no new pass."""
    monkeypatch.setattr(fusion_stages, "WIDEST", 300)
    first = queue(three[:2], statistics=EACH)
    assert passes(first) == [2, 2, 2]
    assert passes(queue(three[:2], statistics=EACH, damping=0.1)) == [0, 0, 0]
    turned = queue(three[1::-1], statistics=EACH)
    assert passes(turned) == [0, 0, 0]
    more = queue(three, statistics=EACH)
    assert passes(more) == [1, 1, 3]  # the third has no part in the text encoder's span
    assert "whose inputs are projected to the span of the LoRAs" in more.result[4]
    same(more, queue(three, statistics="nothing"))
    queue(three, statistics=EACH)
    fewer = queue(three[:2], statistics=EACH)
    assert passes(fewer) == [0, 0, 0]
    same(fewer, first)


def test_paper_finds_the_same_concepts_in_another_order(three, folder):
    queue(three[:2], activations="paper")
    turned = queue(three[1::-1], activations="paper")
    assert passes(turned) == [0, 0, 0]
    stages = queue(three[:2], activations="paper", damping=0.1).result[5].stages
    assert [stage.passes for stage in stages] == [0, 2, 2]


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
    leave_no_space(monkeypatch)
    out = queue(three[:2])
    assert "new statistics are not kept: they need" in out.result[4]
    assert not list(folder.rglob("*.safetensors"))
    monkeypatch.undo()

    def full(self, *args):
        raise RuntimeError("'sum.safetensors' needs 1.0 MB, got: No space left on device")

    monkeypatch.setattr(FusionStore, "keep_sum", full)
    again = queue(three[:2])
    assert "the statistics are not kept: 'sum.safetensors' needs" in again.result[4]
    assert all(torch.equal(out.result[2][key], again.result[2][key]) for key in out.result[2])
    monkeypatch.undo()
    queue(three[:2])
    leave_no_space(monkeypatch)
    assert passes(queue(three[:2])) == [0, 0, 0]  # what lies there is read


@pytest.mark.parametrize("name", ["keep_member", "keep_gram"])
def test_a_disk_that_fills_up_later_costs_the_statistics_alone(three, folder, monkeypatch, name):
    def full(self, *args):
        raise RuntimeError("'x' needs 1.0 MB, got: No space left on device")

    monkeypatch.setattr(FusionStore, name, full)
    out = queue(three[:2], statistics=EACH)
    assert "the statistics are not kept: 'x' needs 1.0 MB" in out.result[4]
    assert passes(out) == [2, 2, 2]


@pytest.mark.parametrize("mode", ["own", "paper"])
def test_the_progress_bar_goes_to_its_end_whatever_is_kept(three, folder, mode):
    seen = []
    for _ in range(2):  # with nothing kept, and with all of it
        with progress(lambda value, total: seen.append(total)) as values:
            queue(three[:2], activations=mode)
        assert values == sorted(values)
        assert values[-1] == seen[-1]
    assert len(set(seen)) == 1


def test_a_folder_in_use_or_read_only(three, folder):
    queue(three[:2])
    (place,) = folder.glob("fusion-*")
    with run_lock(place), pytest.raises(RuntimeError) as error:
        queue(three[:2])
    assert str(error.value) == (
        "a base's statistics must be used by one fusion at a time, got "
        f"{place} in use by another; wait for it, stop it, or set statistics to nothing"
    )
    (place / LOCK_FILE).unlink()
    (place / LOCK_FILE).mkdir()  # a file that cannot be opened, for root too
    out = queue(three[:2])
    assert "the statistics are not kept: the run's folder" in out.result[4]
    assert passes(out) == [2, 2, 2]


def test_sums_remove_the_grams_of_every_stage(three, folder):
    queue(three[:2], statistics=EACH)
    assert list(folder.rglob("spatial own/*.gram.safetensors"))
    queue(three[:2], activations="paper")
    assert not list(folder.rglob("*.gram.safetensors"))


def test_memory_is_the_cards_own_peak(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 900 - 100 * len(reset))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    card = torch.device("cuda", 0)
    assert fusion_stages.memory_in_use(card) == 900
    stages = object.__new__(Stages)
    stages._device = card
    stages._begin()
    assert (reset, stages._peak) == ([card], 800)
