"""What a study has measured, kept in the cache as soon as it is there, so that it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kept:
    """Results by what they follow from.

    Args:
        folder: Where they lie.
        rests: What all of them rest on, as plain values.
    """

    folder: Path
    rests: Sequence[Any]

    def path(self, place: Sequence[Any]) -> Path:
        """Where the result of ``place`` lies; its first entry names the file."""
        digest = hashlib.sha256(json.dumps([*self.rests, *place]).encode()).hexdigest()[:16]
        name = str(place[0]).split(",")[0].replace(" ", "_")
        return self.folder / f"{name}-{digest}.json"

    def __call__(self, place: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, from the cache where it was made before."""
        path = self.path(place)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(make()), encoding="utf-8")
            temporary.replace(path)
        return json.loads(path.read_text(encoding="utf-8"))
