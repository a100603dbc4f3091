"""Store the results of a study on disk as soon as they are computed, so that it can be resumed."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class ResultCache:
    """A cache of results with one file per key, named by a digest of the key and the basis.

    Args:
        folder: Folder of the files.
        basis: Plain values that every result of the study depends on.
    """

    folder: Path
    basis: Sequence[Any]

    def path(self, key: Sequence[Any], name: str | None = None) -> Path:
        """Return the file of a key; its name begins with ``name`` or the key's first entry."""
        digest = hashlib.sha256(json.dumps([*self.basis, *key]).encode()).hexdigest()[:16]
        if name is None:
            name = str(key[0]).split(",")[0].replace(" ", "_")
        return self.folder / f"{name}-{digest}.json"

    def get(
        self,
        key: Sequence[Any],
        compute: Callable[[], Any],
        name: str | None = None,
        *,
        again: bool = False,
    ) -> Any:
        """Return the stored result of a key; compute and store it if there is none.

        Args:
            key: Plain values that identify the result.
            compute: Function that computes the result, a JSON value.
            name: Beginning of the file's name.
            again: Whether to compute and replace a stored result.
        """
        path = self.path(key, name)
        if again or not path.exists():
            _write(path, lambda part: part.write_text(json.dumps(compute()), encoding="utf-8"))
        return json.loads(path.read_text(encoding="utf-8"))

    def tensor_file(
        self,
        key: Sequence[Any],
        compute: Callable[[], Mapping[str, Tensor]],
        name: str | None = None,
    ) -> Path:
        """Return the file that holds a key's tensors; compute and store them if there is none."""
        path = self.path(key, name).with_suffix(".safetensors")
        if not path.exists():
            _write(path, lambda part: save_file(dict(compute()), part))
        return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write(part)
    part.replace(path)


def source_digest(files: Iterable[Path]) -> str:
    """Return a digest of the code in Python files on which a study's results depend.

    The digest ignores comments, docstrings, imports and file names, because changing them or moving
    a file changes no result.
    """
    digests = sorted(_code_digest(file) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _code_digest(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_left_out(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_left_out(statement: ast.stmt) -> bool:
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return text or isinstance(statement, ast.Import | ast.ImportFrom)
