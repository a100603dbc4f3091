"""Read safetensors files with full validation, and write them atomically."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # the format's own limit
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, checked against the file's size.

    Args:
        entries: Dtype, shape and offsets by tensor name.
        metadata: Metadata of the file, strings by strings.
        start: Offset of the tensors' bytes in the file.
    """

    entries: dict[str, Any]
    metadata: dict[str, str]
    start: int


@dataclass(frozen=True)
class PackedTensors:
    """Tensors serialised in the layout of a file.

    Args:
        entries: Header entries by tensor name.
        data: Bytes of the tensors, without the header.
        digest: SHA-256 of ``data``, hexadecimal.
    """

    entries: dict[str, Any]
    data: memoryview
    digest: str

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Return the header's bytes, which do not depend on the order of the metadata."""
        text = json.dumps(
            {METADATA: dict(sorted(metadata.items())), **self.entries}, separators=(",", ":")
        ).encode()
        text += b" " * (-len(text) % 8)
        return _LENGTH.pack(len(text)) + text


def read_header(path: Path) -> Header:
    """Return a safetensors file's validated header.

    Raises:
        ValueError: It is not a complete safetensors file; the message gives the reason.
    """
    name = path.name
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise ValueError(
            f"a LoRA must be a .safetensors file, got {name!r}, which may carry a program and was "
            "not opened; convert it to safetensors first"
        )
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(_LENGTH.size)
            length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else 0
            if not 2 <= length <= _LONGEST_HEADER:
                # Checked last, because a header of 640 bytes begins with the bytes of a pickle.
                if first.startswith(_PICKLE_STARTS):
                    raise ValueError(
                        f"{name!r} must be a safetensors file, got a pickle under that name, which "
                        "may carry a program and was not opened; convert it to safetensors first"
                    )
                raise ValueError(
                    f"{name!r} must be a safetensors file, got something else under that name; "
                    "download it again"
                )
            start = _LENGTH.size + length
            if start > size:
                raise _cut_short(name, start, size)
            text = file.read(length)
    except OSError as error:
        raise ValueError(
            f"{name!r} must be readable, got: {error.strerror}; check the file"
        ) from error
    entries = _parse(name, text)
    metadata = _checked_metadata(name, entries.pop(METADATA, None) or {})
    _check_layout(name, entries, start, size)
    return Header(entries, metadata, start)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return a safetensors file's tensors, each in separate memory.

    Raises:
        ValueError: It is not a complete safetensors file.
    """
    read_header(path)
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise _damaged(path.name, str(error)) from error


def pack_tensors(tensors: Mapping[str, Tensor]) -> PackedTensors:
    """Return tensors serialised for a file; they must be contiguous and share no memory."""
    blob = memoryview(safetensors.torch.save(dict(tensors)))
    start = _LENGTH.size + _LENGTH.unpack(blob[: _LENGTH.size])[0]
    entries = json.loads(bytes(blob[_LENGTH.size : start]))
    entries.pop(METADATA, None)
    data = blob[start:]
    return PackedTensors(entries, data, hashlib.sha256(data).hexdigest())


def holds(
    path: Path, packed: PackedTensors, metadata: Mapping[str, str], ignoring: Collection[str]
) -> bool:
    """Return whether a file has these tensors and this metadata, except for the ignored keys."""
    try:
        header = read_header(path)
    except ValueError:
        return False
    kept = {key: value for key, value in metadata.items() if key not in ignoring}
    theirs = {key: value for key, value in header.metadata.items() if key not in ignoring}
    if theirs != kept or header.entries != packed.entries:
        return False
    return data_digest(path, header) == packed.digest


def data_digest(path: Path, header: Header) -> str:
    """Return the SHA-256 of a file's tensors, hexadecimal, equal to ``PackedTensors.digest``."""
    with path.open("rb") as file:
        file.seek(header.start)
        return hashlib.sha256(file.read()).hexdigest()


def write_new(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a new file atomically.

    Raises:
        FileExistsError: A file of that name exists; it is unchanged.
        RuntimeError: The disk is full or the folder cannot be written to; no partial file is left.
    """
    size = sum(len(piece) for piece in pieces)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    except OSError as error:
        raise _unwritable(path, size, error) from error
    claimed = False
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        # Reserve the name, so that two processes never use the same one.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        claimed = True
        Path(temporary).chmod(path.stat().st_mode)
        os.replace(temporary, path)
        claimed = False
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(path, size, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
        if claimed:
            path.unlink(missing_ok=True)


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace a file atomically: readers see the old or the new file, never a partial one.

    Raises:
        RuntimeError: The disk is full or the folder cannot be written to; the old file is kept.
    """
    size = sum(len(piece) for piece in pieces)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, size, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _parse(name: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        # The format requires UTF-8; json.loads would accept other encodings too.
        entries = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, "its header cannot be read") from error
    if not isinstance(entries, dict):
        raise _damaged(name, "its header lists no tensors")
    return entries


def _checked_metadata(name: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(name, "its metadata are not texts")
    return metadata


def _check_layout(name: str, entries: Mapping[str, Any], start: int, size: int) -> None:
    spans = []
    for key, entry in entries.items():
        span = _span(entry)
        if span is None:
            raise _damaged(name, f"its header contradicts itself at {key[:80]!r}")
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _damaged(name, "its tensors overlap or leave gaps")
        end = last
    if start + end > size:
        raise _cut_short(name, start + end, size)
    if start + end < size:
        raise _damaged(name, f"it has {size - start - end} bytes too many")


def _span(entry: object) -> tuple[int, int] | None:
    """Return a tensor's offsets if its dtype, shape and offsets agree and it is not empty."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        return None
    if not all(isinstance(numbers, list) for numbers in (shape, offsets)) or len(offsets) != 2:
        return None
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        return None
    first, last = offsets
    size = math.prod(shape) * _BYTES[dtype]
    return (first, last) if size > 0 and last - first == size else None


def _damaged(name: str, why: str) -> ValueError:
    return ValueError(f"{name!r} must be a whole safetensors file, but {why}; download it again")


def _cut_short(name: str, expected: int, size: int) -> ValueError:
    return _damaged(name, f"it is cut short, {size} of at least {expected} bytes")


def _unwritable(path: Path, size: int, error: OSError) -> RuntimeError:
    return RuntimeError(
        f"{path.name!r} needs {size / 1e6:.1f} MB in {str(path.parent)!r}, got: {error.strerror}; "
        "it was not written, free some space or choose another folder"
    )
