"""Safetensors files: packed as the library reads them, written whole or not at all."""

import pytest
import safetensors.torch
import torch
from pack.training.files.tensor_file import (
    holds,
    pack_tensors,
    read_header,
    read_tensors,
    write_new,
)


def some_tensors(dtype):
    """Return a matrix, a vector and a number."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (4, 6), "a.weight": (8,), "a.alpha": ()}
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def test_a_packed_file_is_what_the_library_reads(tmp_path):
    tensors = some_tensors(torch.bfloat16)
    packed = pack_tensors(tensors)
    path = tmp_path / "a.safetensors"
    write_new(path, packed.header({"b": "ü", "a": "1"}), packed.data)
    loaded = safetensors.torch.load_file(path)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"a": "1", "b": "ü"}
    assert read_header(path).start % 8 == 0
    assert packed.header({"a": "1", "b": "2"}) == packed.header({"b": "2", "a": "1"})
    assert all(torch.equal(read_tensors(path)[key], tensors[key]) for key in tensors)


def test_two_files_are_the_same_but_for_ignored_keys(tmp_path):
    tensors = some_tensors(torch.float16)
    packed = pack_tensors(tensors)
    path = tmp_path / "a.safetensors"
    write_new(path, packed.header({"date": "1", "a": "1"}), packed.data)
    assert holds(path, packed, {"date": "2", "a": "1"}, ["date"])
    assert not holds(path, packed, {"date": "1", "a": "2"}, ["date"])
    tensors["b.weight"][0, 0] += 1
    assert not holds(path, pack_tensors(tensors), {"date": "1", "a": "1"}, ["date"])
    assert not holds(tmp_path / "absent.safetensors", packed, {}, [])


def test_an_existing_file_is_never_touched(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_new(path, b"other")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    resource = pytest.importorskip("resource", reason="file sizes are limited the POSIX way")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(RuntimeError, match=r"'a\.safetensors' needs 0\.2 MB in .*; it was not"):
            write_new(tmp_path / "a.safetensors", b"x" * 100_000, b"y" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(RuntimeError, match="choose another folder"):
        write_new(tmp_path / "gone" / "a.safetensors", b"x")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    """The length comes first in the file, and 640 is written as a pickle begins."""
    packed = pack_tensors({"a": torch.ones(2)})
    room = length - len(packed.header({"note": ""})) + 8
    content = packed.header({"note": "x" * room})
    assert content[0] == 0x80
    (tmp_path / "file.safetensors").write_bytes(content + bytes(packed.data))
    assert torch.equal(read_tensors(tmp_path / "file.safetensors")["a"], torch.ones(2))
