"""Corrupt safetensors files in many ways; every mutant depends only on its seed.

The kinds in this module corrupt bytes, as a bad disk or a broken download does. Those of
``mutated_contents`` write a readable file with other contents.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from mutated_contents import CONTENT_KINDS, Draw, File, parse, with_header


@dataclass(frozen=True)
class Mutant:
    """A corrupted file.

    Args:
        name: Kind and seed.
        kind: Key of ``KINDS``.
        data: Bytes of the file.
    """

    name: str
    kind: str
    data: bytes


def truncated(whole: bytes, draw: Draw) -> bytes:
    return whole[: draw.randrange(len(whole))]


def header_length(whole: bytes, draw: Draw) -> bytes:
    true = struct.unpack("<Q", whole[:8])[0]
    near = true + draw.choice([-8, -1, 1, 2, 8, 100])
    wild = draw.choice(
        [0, 1, 2**31, 2**32 + true, 2**63, 2**64 - 1, len(whole), draw.getrandbits(64)]
    )
    return struct.pack("<Q", draw.choice([near, wild])) + whole[8:]


def header_bytes(whole: bytes, draw: Draw) -> bytes:
    data, end = bytearray(whole), 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(draw.randint(1, 5)):
        data[draw.randrange(8, end)] = draw.randrange(256)
    return bytes(data)


def header_digit(whole: bytes, draw: Draw) -> bytes:
    data, end = bytearray(whole), 8 + struct.unpack("<Q", whole[:8])[0]
    digits = [at for at in range(8, end) if chr(data[at]).isdigit()]
    data[draw.choice(digits)] = ord(str(draw.randrange(10)))
    return bytes(data)


def tensor_bytes(whole: bytes, draw: Draw) -> bytes:
    data, start = bytearray(whole), 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(draw.randint(1, 40)):
        data[draw.randrange(start, len(data))] = draw.randrange(256)
    return bytes(data)


def inserted(whole: bytes, draw: Draw) -> bytes:
    at = draw.randrange(len(whole) + 1)
    return whole[:at] + draw.randbytes(draw.randint(1, 30)) + whole[at:]


def removed(whole: bytes, draw: Draw) -> bytes:
    at = draw.randrange(len(whole) - 30)
    return whole[:at] + whole[at + draw.randint(1, 30) :]


def another_encoding(whole: bytes, draw: Draw) -> bytes:
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    encoding = draw.choice(
        [
            "utf-16",
            "utf-16-le",
            "utf-16-be",
            "utf-32",
            "utf-32-be",
            "utf-8-sig",
            "utf-32-le",
            "cp037",
            "cp500",
            "cp1026",
        ]
    )
    return with_header(whole[8:start].decode().encode(encoding), whole[start:])


def another_format(whole: bytes, draw: Draw) -> bytes:
    starts = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"GGUF", b"<!DOCTYPE html>", b"\0" * 8)
    return draw.choice(starts) + draw.choice([b"", whole[8:], draw.randbytes(2000)])


def name_twice(whole: bytes, draw: Draw) -> bytes:
    """Repeat a key of the JSON header; readers disagree on which value counts."""
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    entries = json.loads(whole[8:start])
    key = draw.choice(sorted(entries))
    text = (
        whole[8:start].rstrip()[:-1] + f",{json.dumps(key)}:{json.dumps(entries[key])}}}".encode()
    )
    return with_header(text, whole[start:])


def _of_file(change: Callable[[File, Draw], File]) -> Callable[[bytes, Draw], bytes]:
    return lambda whole, draw: change(parse(whole), draw).to_bytes()


_BYTES = (
    truncated,
    header_length,
    header_bytes,
    header_digit,
    tensor_bytes,
    inserted,
    removed,
    another_encoding,
    another_format,
    name_twice,
)
KINDS: dict[str, Callable[[bytes, Draw], bytes]] = {
    **{change.__name__: change for change in _BYTES},
    **{change.__name__: _of_file(change) for change in CONTENT_KINDS},
}
# No file of these kinds may be loaded.
NEVER_WHOLE = frozenset(
    {
        "truncated",
        "another_encoding",
        "another_format",
        "name_twice",
        "overlapping",
        "not_finite",
        "all_foreign",
    }
)


def mutants(wholes: list[bytes], count: int, first: int = 0) -> list[Mutant]:
    """Return ``count`` mutants, which differ from each other and from the original files.

    Kinds and files take turns.
    """
    kinds = list(KINDS)
    seen, found = set(wholes), []
    for seed in range(first, first + count):
        kind = kinds[seed % len(kinds)]
        whole = wholes[seed // len(kinds) % len(wholes)]
        draw = random.Random(seed)
        data = whole
        for _ in range(50):  # some kinds have few faults to choose from
            data = KINDS[kind](whole, draw)
            if data not in seen:
                break
        seen.add(data)
        found.append(Mutant(f"{kind}_{seed}", kind, data))
    return found
