"""Render every drawing of the world once into an RGBA array from which all scenes are drawn."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image

from .packages import PACKAGES, fetch, icons
from .vocabulary import MASTER_SIDE, SETS, THINGS

INK = "#222222"  # replaces "currentColor" in the black-and-white set


def world_cache() -> Path:
    """Return the folder of the drawn world in the user's cache, and create it if there is none."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = root / "comfyui-pastiche" / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _svg(collection: dict, name: str) -> str:
    """Return one drawing as an SVG document, centred in a square."""
    icon = collection["icons"][name]
    width = icon.get("width", collection.get("width", 16))
    height = icon.get("height", collection.get("height", 16))
    side = max(width, height)
    left = icon.get("left", 0) - (side - width) / 2
    top = icon.get("top", 0) - (side - height) / 2
    body = icon["body"].replace("currentColor", INK)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}" width="{MASTER_SIDE}" height="{MASTER_SIDE}">'
        f"{body}</svg>"
    )


def _rendered(svg: str) -> np.ndarray:
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "rendering the drawings needs the package resvg-py, got none; "
            "run this through scripts/dev.py python, whose environment has it"
        ) from error
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    if picture.size != (MASTER_SIDE, MASTER_SIDE):
        picture = picture.resize((MASTER_SIDE, MASTER_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def masters() -> np.ndarray:
    """Return all drawings, uint8 (thing, set, MASTER_SIDE, MASTER_SIDE, 4), memory-mapped.

    They are fetched and rendered on the first call and stored in the cache.
    """
    stored = world_cache() / f"masters-{len(THINGS)}.npy"
    if not stored.exists():
        archives = {p.name: fetch(p, world_cache() / "packages") for p in PACKAGES}
        shape = (len(THINGS), len(SETS), MASTER_SIDE, MASTER_SIDE, 4)
        drawings = np.zeros(shape, np.uint8)
        for column, package in enumerate(SETS.values()):
            collection = icons(archives[package])
            for row, name in enumerate(THINGS.values()):
                drawings[row, column] = _rendered(_svg(collection, name))
            logging.info("rendered the drawings of %s", package)
        temporary = stored.with_suffix(f".{os.getpid()}.part.npy")
        np.save(temporary, drawings)
        os.replace(temporary, stored)
    return np.load(stored, mmap_mode="r")
