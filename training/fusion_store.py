"""Fusion's statistics on disk: of every concept its own small part, of all together their sum."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..lora_ops import Gram
from .tensor_file import METADATA, replace_file

DIGEST_FILE = "stage.json"
SUM_FILE = "sum.safetensors"
_LENGTH = struct.Struct("<Q")
_DTYPES = {torch.float64: "F64", torch.float32: "F32"}


@dataclass(frozen=True)
class MemberStatistics:
    """What one concept's pass through a stage leaves, all of it small.

    Args:
        projected: ``(rank, in)`` in fp64 by layer name: ``down @ G`` of the mean input row.
        samples: ``(row, in)`` by site: some of its input rows, for the report.
        rows: ``(row, in)`` by site: all of its input rows, where these are few.
    """

    projected: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredSum:
    """The weighted sum of several concepts' Gram matrices.

    Args:
        weights: Of the concepts in it, by their digest.
        grams: By site.
    """

    weights: Mapping[str, float]
    grams: Mapping[str, Gram]


class FusionStore:
    """The statistics of one stage in one folder, all under one digest of what they rest on.

    Files of another digest are removed when the store is opened: they belong to another base,
    other settings, or other fused earlier stages.

    Args:
        folder: Of the stage.
        digest: Of all that the statistics depend on apart from the concepts themselves.

    Raises:
        RuntimeError: The folder cannot be written.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder, self.digest = folder, digest
        try:
            if folder.is_dir() and self._digest_there() != digest:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeError(
                f"the statistics' folder {folder} must be writable, got: "
                f"{error.strerror or error}; allow writing there or choose to keep nothing"
            ) from error
        if not (folder / DIGEST_FILE).is_file():
            replace_file(folder / DIGEST_FILE, json.dumps({"digest": digest}).encode())

    def member(self, concept: str) -> MemberStatistics | None:
        """Return a concept's own statistics, None where there are none that can be read."""
        found = _read(self.folder / f"{concept}.safetensors")
        if found is None:
            return None
        tensors, _ = found
        kinds: dict[str, dict[str, Tensor]] = {"projected": {}, "samples": {}, "rows": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = tensor
        return MemberStatistics(**kinds)

    def keep_member(self, concept: str, statistics: MemberStatistics) -> None:
        """Write a concept's own statistics.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written.
        """
        tensors = {
            f"{kind}/{name}": tensor
            for kind in ("projected", "samples", "rows")
            for name, tensor in getattr(statistics, kind).items()
        }
        _write(self.folder / f"{concept}.safetensors", tensors, {})

    def sum(self) -> StoredSum | None:
        """Return the sum that was kept last, None where there is none that can be read."""
        found = _read(self.folder / SUM_FILE)
        if found is None:
            return None
        tensors, said = found
        return StoredSum(said["weights"], _grams(tensors, said))

    def keep_sum(self, weights: Mapping[str, float], grams: Mapping[str, Gram]) -> None:
        """Write the sum of the concepts' Grams in place of the last one.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written.
        """
        self._keep_grams(self.folder / SUM_FILE, grams, {"weights": dict(weights)})

    def gram(self, concept: str) -> Mapping[str, Gram] | None:
        """Return a concept's own Grams by site, None where they were not kept."""
        found = _read(self.folder / f"{concept}.gram.safetensors")
        return None if found is None else _grams(*found)

    def keep_gram(self, concept: str, grams: Mapping[str, Gram]) -> None:
        """Write a concept's own Grams.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written.
        """
        self._keep_grams(self.folder / f"{concept}.gram.safetensors", grams, {})

    def remove_grams(self) -> int:
        """Remove the Grams that were kept for each concept, and return how many there were."""
        found = list(self.folder.glob("*.gram.safetensors"))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _digest_there(self) -> str | None:
        try:
            return json.loads((self.folder / DIGEST_FILE).read_text("utf-8"))["digest"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _keep_grams(self, path: Path, grams: Mapping[str, Gram], said: Mapping[str, Any]) -> None:
        facts = {site: [gram.rows, gram.energy, gram.width] for site, gram in grams.items()}
        halves: dict[str, Callable[[], Tensor]] = {
            site: lambda gram=gram: _half(gram.matrix) for site, gram in grams.items()
        }
        sizes = {
            site: len(gram.matrix) * (len(gram.matrix) + 1) // 2 for site, gram in grams.items()
        }
        _write_lazily(
            path,
            {s: (torch.float64, (sizes[s],)) for s in halves},
            halves,
            {
                **said,
                "facts": facts,
            },
        )


def grams_size(widths: Mapping[str, int]) -> int:
    """Return how many bytes the Grams of sites of these widths take on disk."""
    return sum(8 * width * (width + 1) // 2 for width in widths.values())


def _half(matrix: Tensor) -> Tensor:
    """Return the lower half of a symmetric matrix, row by row."""
    mask = torch.ones(matrix.shape, dtype=torch.bool).tril()
    return matrix.cpu()[mask]


def _grams(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Gram]:
    found = {}
    for site, (rows, energy, width) in said["facts"].items():
        half = tensors[site]
        size = int((2 * len(half)) ** 0.5)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[torch.ones(size, size, dtype=torch.bool).tril()] = half
        found[site] = Gram(matrix + matrix.tril(-1).mT, rows, energy, width)
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return a file's tensors and what it says; None if it is missing or damaged in any way."""
    try:
        with safetensors.safe_open(path, "pt") as file:  # pyright: ignore[reportUnknownMemberType]
            said = json.loads(file.metadata()["pastiche.fusion"])
            return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
    except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError):
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    kept = {
        name: tensor.detach().to("cpu", _kept_dtype(tensor)).contiguous()
        for name, tensor in tensors.items()
    }
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()}
    _write_lazily(path, shapes, {n: lambda t=t: t for n, t in kept.items()}, said)


def _kept_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in _DTYPES else torch.float32


def _write_lazily(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Mapping[str, Callable[[], Tensor]],
    said: Mapping[str, Any],
) -> None:
    """Write a safetensors file whole or not at all, with one tensor at a time in memory."""
    entries: dict[str, Any] = {METADATA: {"pastiche.fusion": json.dumps(said)}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start = end
        end += dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(_LENGTH.pack(len(header)) + header)
            for make in tensors.values():
                file.write(make().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RuntimeError(
            f"{path.name!r} needs {end / 1e6:.1f} MB in {str(path.parent)!r}, got: "
            f"{error.strerror}; it was not written, free some space or choose to keep nothing"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
