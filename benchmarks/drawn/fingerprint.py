"""Compute the world's hash from its vocabulary, its packages, and sample pictures and captions.

The hash covers content only, not paths or code. Moving or rewording a file keeps all checkpoints
valid, while any change of a picture or a caption makes another world.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from . import vocabulary
from .packages import PACKAGES
from .scenes import Scene, any_scene, caption, draw, random_scene

RECORD = Path(__file__).with_name("world.json")
SAMPLES = 60  # scenes of each kind that enter the hash


def _words() -> dict:
    """Return all constants of the vocabulary by name, as JSON values."""
    names = [name for name in dir(vocabulary) if name.isupper()]
    return {name.lower(): getattr(vocabulary, name) for name in names}


@cache
def world_hash() -> str:
    """Return the hash of the present world, which every result records."""
    digest = hashlib.sha256()
    digest.update(json.dumps(_words(), sort_keys=True).encode())
    digest.update(json.dumps([(p.name, p.version, p.sha256) for p in PACKAGES]).encode())
    for seed in range(SAMPLES):
        for scene in (any_scene(seed), any_scene(seed, wide=True), *_learnt_scenes(seed)):
            digest.update(draw(scene).tobytes())
            digest.update(f"{caption(scene)}\n{caption(scene, seed)}\n".encode())
    return digest.hexdigest()[:16]


def _learnt_scenes(seed: int) -> tuple[Scene, ...]:
    return random_scene(seed), random_scene(seed, wide=True), random_scene(seed, held_out=True)


def recorded_hash() -> str:
    """Return the hash that was recorded before the bases were trained."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["hash"]


def require_recorded_world() -> str:
    """Return the world's hash, and raise unless it equals the recorded one.

    Raises:
        RuntimeError: They differ.
    """
    computed, recorded = world_hash(), recorded_hash()
    if computed != recorded:
        raise RuntimeError(
            f"the drawn world must have the recorded hash {recorded}, got {computed}: a word, a "
            "drawing or a renderer has changed; check out the commit that the base was trained with"
        )
    return computed


def write_record() -> None:
    """Write ``world.json``: the hash and the vocabulary, readable without a renderer."""
    record = {"hash": world_hash(), **_words()}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
