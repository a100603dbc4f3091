"""Renders for training: which scenes the base, the VAE and the judge see, made in processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from .render import render
from .world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    MARKS,
    STYLES,
    Scene,
    Thing,
    random_scene,
    world_hash,
)


def cache_folder() -> Path:
    """The user's cache folder of this world's training state, made if absent."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = root / "comfyui-pastiche" / "toyworld" / world_hash()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def base_scene(seed: int) -> Scene:
    """A square training scene of the base: one object, a seen combination."""
    return random_scene(np.random.RandomState(seed))


def wide_scene(seed: int) -> Scene:
    """A 2:1 training scene of the base: two objects, sometimes one."""
    generator = np.random.RandomState(seed)
    return random_scene(generator, objects=1 if generator.rand() < 0.15 else 2, wide=True)


def any_scene(seed: int) -> Scene:
    """A square scene of the whole world, held-out parts and marks included: for VAE and judge.

    Base training never uses it: a VAE must code any picture, as public VAEs do.
    """
    generator = np.random.RandomState(seed)
    mark = MARKS[generator.randint(len(MARKS))] if generator.rand() < 0.25 else None
    thing = Thing(
        CLASSES[generator.randint(len(CLASSES))],
        list(COLOURS)[generator.randint(len(COLOURS))],
        mark,
    )
    background = BACKGROUNDS[generator.randint(len(BACKGROUNDS))]
    return Scene((thing,), background, STYLES[generator.randint(len(STYLES))], seed=seed)


def _picture(job: tuple[Callable[[int], Scene], int]) -> np.ndarray:
    return render(job[0](job[1]))


def render_many(scene_of: Callable[[int], Scene], seeds: range, processes: int) -> np.ndarray:
    """Render the scenes of some seeds, uint8 (count, height, width, 3)."""
    with Pool(processes) as pool:
        jobs = [(scene_of, seed) for seed in seeds]
        return np.stack(pool.map(_picture, jobs, chunksize=100))
