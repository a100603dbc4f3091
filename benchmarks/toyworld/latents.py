"""What the denoiser trains on: latents of true renders and the contexts of their captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import base_scene, render_many, wide_scene
from .text import CaptionEncoder
from .vae import TinyVAE
from .world import Scene, caption

SQUARE_COUNT = 12000
WIDE_COUNT = 4500
WIDE_REPEATS = 3  # renders that share a wide caption, since a caption costs more than a render
WIDE_SEEDS = 10_000_000  # wide scenes draw from other seeds than square ones


def repeated_wide_scene(number: int) -> Scene:
    """Wide scene ``number``; each group of WIDE_REPEATS has one caption and new jitter."""
    scene = wide_scene(WIDE_SEEDS + number // WIDE_REPEATS)
    return replace(scene, seed=WIDE_SEEDS + number)


def make_renders(folder: Path, processes: int) -> None:
    """Render the training pictures into ``square.npy`` and ``wide.npy``."""
    for name, scene_of, count in (
        ("square", base_scene, SQUARE_COUNT),
        ("wide", repeated_wide_scene, WIDE_COUNT),
    ):
        if not (folder / f"{name}.npy").exists():
            np.save(folder / f"{name}.npy", render_many(scene_of, range(count), processes))
            logging.info("rendered %d %s pictures", count, name)


def caption_table() -> tuple[list[str], dict[str, Tensor]]:
    """Distinct captions, the empty one first, and the rows' indices into them.

    The index tensors are ``square``, ``square_generic`` (class named `thing`) and ``wide``.
    """
    squares = [base_scene(seed) for seed in range(SQUARE_COUNT)]
    wides = [repeated_wide_scene(number) for number in range(WIDE_COUNT)]
    columns = {
        "square": [caption(scene) for scene in squares],
        "square_generic": [caption(scene, generic=True) for scene in squares],
        "wide": [caption(scene) for scene in wides],
    }
    distinct = ["", *sorted({text for column in columns.values() for text in column})]
    number = {text: index for index, text in enumerate(distinct)}
    return distinct, {
        name: torch.tensor([number[text] for text in column]) for name, column in columns.items()
    }


def make_contexts(folder: Path, captions: Sequence[str], comfyui: Path, *, device: str) -> None:
    """Encode the captions into ``contexts.pt``, (caption, 77, 768) bf16."""
    torch.save(CaptionEncoder(comfyui, device).encode(captions), folder / "contexts.pt")


@torch.no_grad()
def make_latents(folder: Path, vae: TinyVAE, *, device: str) -> None:
    """Encode the renders into ``latents.pt``: ``square`` and ``wide``, unit latents in fp16."""
    latents = {}
    for name in ("square", "wide"):
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        parts = []
        for start in range(0, len(pictures), 64):
            x = torch.from_numpy(np.array(pictures[start : start + 64])).permute(0, 3, 1, 2)
            x = (x.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                parts.append(vae.encode(x).half().cpu())
        latents[name] = torch.cat(parts)
        logging.info("%s latents: std %.3f", name, latents[name].float().std())
    torch.save(latents, folder / "latents.pt")
