"""Fusion's statistics go through files unchanged, whole or not at all."""

import pytest
import torch
from pack.lora_ops import Gram
from pack.training.runs.fusion_store import FusionStore, MemberStatistics, grams_size, remove_grams


def gram(size=5, seed=0):
    rows = torch.randn(9, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = rows.mT @ rows
    matrix = (matrix + matrix.mT) / 2
    return Gram(matrix, 9, float(matrix.trace()), size)


def test_statistics_come_back_as_they_were(tmp_path):
    store = FusionStore(tmp_path / "text", "a")
    store.keep_sum({"one": 1.0, "two": 0.5}, {"site.q": gram(), "site.out": gram(3, 1)})
    found = FusionStore(tmp_path / "text", "a").sum()
    assert found.weights == {"one": 1.0, "two": 0.5}
    for site, wanted in (("site.q", gram()), ("site.out", gram(3, 1))):
        assert torch.equal(found.grams[site].matrix, wanted.matrix)
        assert (found.grams[site].rows, found.grams[site].energy) == (9, wanted.energy)
    own = MemberStatistics(
        {"a/b": torch.ones(2, 3, dtype=torch.float64)}, {"site": torch.ones(4, 3)}
    )
    store.keep_member("one", own)
    again = store.member("one")
    assert (own.held, again.held) == (6 * 8 + 12 * 4, 0)  # read when it is asked for
    assert torch.equal(again.projected["a/b"], own.projected["a/b"])
    assert torch.equal(again.samples["site"], own.samples["site"])
    assert again.rows == {}
    store.keep_gram("one", {"site": gram()})
    assert torch.equal(store.gram("one")["site"].matrix, gram().matrix)
    remove_grams(tmp_path)
    assert (store.gram("one"), store.member("two")) == (None, None)


def test_what_a_killed_process_left_is_removed(tmp_path):
    FusionStore(tmp_path / "text", "a")
    (tmp_path / "text" / ".sum.safetensors.12ab34cd.tmp").write_bytes(b"half")
    FusionStore(tmp_path / "text", "a")
    assert not list((tmp_path / "text").glob(".*.tmp"))


def test_a_store_that_is_not_written_removes_nothing(tmp_path):
    FusionStore(tmp_path / "text", "a").keep_sum({"one": 1.0}, {"site": gram()})
    assert FusionStore(tmp_path / "text", "a", writable=False).sum().weights == {"one": 1.0}
    assert FusionStore(tmp_path / "text", "b", writable=False).sum() is None
    assert FusionStore(tmp_path / "text", "a").sum() is not None
    assert FusionStore(tmp_path / "none", "a", writable=False).member("one") is None
    assert not (tmp_path / "none").exists()


def test_spans_are_kept_with_what_was_seen_within_them(tmp_path):
    store = FusionStore(tmp_path / "text", "a")
    span = torch.eye(5, dtype=torch.float64)[:3]
    seen = gram().within(span)
    store.keep_sum({"one": 1.0}, {"wide": seen, "site": gram()})
    found = store.sum().grams
    assert (found["wide"].span.equal(span), found.span("site")) == (True, None)
    assert found["wide"].matrix.equal(seen.matrix)


def test_another_digest_begins_anew(tmp_path):
    store = FusionStore(tmp_path / "text", "a")
    store.keep_sum({"one": 1.0}, {"site": gram()})
    assert FusionStore(tmp_path / "text", "b").sum() is None
    assert FusionStore(tmp_path / "text", "a").sum() is None


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_file_counts_as_none(tmp_path, damage):
    store = FusionStore(tmp_path / "text", "a")
    store.keep_sum({"one": 1.0}, {"site": gram()})
    file = tmp_path / "text" / "sum.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert store.sum() is None


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    store = FusionStore(tmp_path / "text", "a")
    store.keep_sum({"one": 1.0}, {"site": gram()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RuntimeError, match=r"'sum\.safetensors' needs .* No space left") as error:
        store.keep_sum({"two": 1.0}, {"site": gram()})
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert store.sum().weights == {"one": 1.0}
    assert not list((tmp_path / "text").glob("*.tmp"))


def test_the_size_is_known_before(tmp_path):
    store = FusionStore(tmp_path / "text", "a")
    store.keep_sum({"one": 1.0}, {"site": gram(64)})
    size = (tmp_path / "text" / "sum.safetensors").stat().st_size
    assert 0 <= size - grams_size({"site": 64}) < 1000
