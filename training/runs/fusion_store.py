"""Store fusion statistics on disk: a small part for every concept, and the sum of all concepts."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ...lora_ops import Gram
from ..files.checkpoint import remove_unfinished
from ..files.tensor_file import METADATA, replace_file

DIGEST_FILE = "stage.json"
SUM_FILE = "sum.safetensors"
_LENGTH = struct.Struct("<Q")
_DTYPES = {torch.float64: "F64", torch.float32: "F32"}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of a safetensors file that are read on access.

    Args:
        path: Path of the file.
        names: Names of the tensors in the file, by the names used here.
    """

    def __init__(self, path: Path, names: Mapping[str, str]):
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names[name]
        with safetensors.safe_open(self._path, "pt") as file:
            return file.get_tensor(stored).clone()  # a copy, not a view of the mapped file

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class MemberStatistics:
    """Statistics of one concept in one stage of the fusion.

    Args:
        projected: ``(rank, in)`` in fp64 by layer name: ``down @ G`` of the mean input row.
        samples: ``(row, in)`` by site: a sample of the input rows, for the report.
        rows: ``(row, in)`` by site: all input rows, at sites with few rows.
    """

    projected: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Return the bytes in memory; tensors that are read on access count nothing."""
        kinds = (self.projected, self.samples, self.rows)
        return sum(
            tensor.nbytes
            for kind in kinds
            if not isinstance(kind, LazyTensors)
            for tensor in kind.values()
        )


class LazyGrams(Mapping[str, Gram]):
    """Gram matrices of a file by site, read on access.

    Args:
        path: Path of the file.
        facts: Number of rows, energy, width and the ``rounded`` flag of the matrices, by site.
    """

    def __init__(self, path: Path, facts: Mapping[str, Sequence[Any]]):
        self._path, self._facts = path, facts

    def __getitem__(self, site: str) -> Gram:
        rows, energy, width, rounded, _ = self._facts[site]
        half = LazyTensors(self._path, {site: f"gram/{site}"})[site]
        size = int((2 * len(half)) ** 0.5)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[torch.ones(size, size, dtype=torch.bool).tril()] = half
        matrix = matrix + matrix.tril(-1).mT
        return Gram(matrix, rows, energy, width, rounded, self.span(site))

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def span(self, site: str) -> Tensor | None:
        """Return the span to which a site's inputs are projected; None for the whole input."""
        in_span = self._facts[site][4]
        return LazyTensors(self._path, {site: f"span/{site}"})[site] if in_span else None


@dataclass(frozen=True)
class StoredSum:
    """The weighted sum of several concepts' Gram matrices.

    Args:
        weights: Weights of the concepts in the sum, by their digest.
        grams: Gram matrices by site.
    """

    weights: Mapping[str, float]
    grams: LazyGrams


class FusionStore:
    """The statistics of one stage in one folder, valid for one digest of their dependencies.

    When the store is opened, files of another digest are removed, because they belong to another
    base, other settings, or other fused earlier stages. Partial files of a killed process are
    removed too.

    Args:
        folder: Folder of the stage.
        digest: Digest of everything that the statistics depend on except the concepts.
        writable: Whether files may be written and removed; otherwise files of another digest are
            ignored.

    Raises:
        RuntimeError: The folder cannot be written.
    """

    def __init__(self, folder: Path, digest: str, *, writable: bool = True):
        self.folder, self.digest, self.writable = folder, digest, writable
        self._readable = writable or self._digest_there() == digest
        if not writable:
            return
        remove_unfinished(folder)
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
        """Return a concept's statistics; None if they are missing or unreadable."""
        path = self.folder / f"{concept}.safetensors"
        found = self._opened(path)
        if found is None:
            return None
        kinds: dict[str, dict[str, str]] = {"projected": {}, "samples": {}, "rows": {}}
        for stored in found[0]:
            kind, _, name = stored.partition("/")
            kinds[kind][name] = stored
        return MemberStatistics(**{k: LazyTensors(path, names) for k, names in kinds.items()})

    def keep_member(self, concept: str, statistics: MemberStatistics) -> None:
        """Write a concept's statistics.

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
        """Return the stored sum; None if it is missing or unreadable."""
        path = self.folder / SUM_FILE
        found = self._opened(path)
        return found and StoredSum(found[1]["weights"], LazyGrams(path, found[1]["facts"]))

    def keep_sum(self, weights: Mapping[str, float], grams: Mapping[str, Gram]) -> None:
        """Write the sum of the concepts' Gram matrices, which replaces the stored one.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written.
        """
        self._keep_grams(self.folder / SUM_FILE, grams, {"weights": dict(weights)})

    def gram(self, concept: str) -> LazyGrams | None:
        """Return a concept's Gram matrices by site; None if they were not stored."""
        path = self.folder / f"{concept}.gram.safetensors"
        found = self._opened(path)
        return found and LazyGrams(path, found[1]["facts"])

    def keep_gram(self, concept: str, grams: Mapping[str, Gram]) -> None:
        """Write a concept's Gram matrices.

        Raises:
            RuntimeError: The disk is full or the folder cannot be written.
        """
        self._keep_grams(self.folder / f"{concept}.gram.safetensors", grams, {})

    def _opened(self, path: Path) -> tuple[list[str], dict[str, Any]] | None:
        return _opened(path) if self._readable else None

    def _digest_there(self) -> str | None:
        try:
            return json.loads((self.folder / DIGEST_FILE).read_text("utf-8"))["digest"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _keep_grams(self, path: Path, grams: Mapping[str, Gram], said: Mapping[str, Any]) -> None:
        facts: dict[str, list[Any]] = {}
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        tensors: dict[str, Callable[[], Tensor]] = {}
        for site, gram in grams.items():
            size, span = len(gram.matrix), gram.span
            facts[site] = [gram.rows, gram.energy, gram.width, gram.rounded, span is not None]
            shapes[f"gram/{site}"] = torch.float64, (size * (size + 1) // 2,)
            tensors[f"gram/{site}"] = lambda gram=gram: _half(gram.matrix)
            if span is not None:
                shapes[f"span/{site}"] = torch.float64, tuple(span.shape)
                tensors[f"span/{site}"] = lambda span=span: span.cpu().contiguous()
        _write_lazily(path, shapes, tensors, {**said, "facts": facts})


def remove_grams(folder: Path) -> None:
    """Remove the Gram matrices of single concepts in all stages' folders below this one."""
    for path in folder.glob("*/*.gram.safetensors"):
        with suppress(OSError):
            path.unlink()


def grams_size(widths: Mapping[str, int]) -> int:
    """Return the bytes on disk of the Gram matrices of sites with these widths."""
    return sum(8 * width * (width + 1) // 2 for width in widths.values())


def _half(matrix: Tensor) -> Tensor:
    """Return the lower half of a symmetric matrix, row by row."""
    mask = torch.ones(matrix.shape, dtype=torch.bool).tril()
    return matrix.cpu()[mask]


def _opened(path: Path) -> tuple[list[str], dict[str, Any]] | None:
    """Return the tensor names and metadata of a file; None if it is missing or cut short."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return list(file.keys()), json.loads(file.metadata()["pastiche.fusion"])
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
    """Write a safetensors file atomically, with one tensor at a time in memory."""
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
