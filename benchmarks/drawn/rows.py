"""Write and read the bases' training rows: shards of latents and of encoded captions.

A shard holds ``SHARD`` scenes of one shape. Captions are kept up to their end token, with
``KEPT_PADDING`` of the padding tokens that follow it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .mmdit import ContextRows
from .scenes import Scene, caption, draw_many, random_scene
from .text_encoder import POSITIONS, WIDTH, TextEncoder, Tokenizer, at_end, final_norm
from .vae import TinyVAE

SHARD = 2048  # scenes per shard
CAPTIONS_EACH = 2  # captions per scene
KEPT_PADDING = 3  # stored padding tokens per caption, which represent all of its padding
MOST_TOKENS = 40  # start, words and end of the longest caption
CONTEXTS = {16: "contexts", 4: "contexts_a"}  # file names of captions, by the latents' channels
_WIDE_SEEDS = 50_000_000  # wide scenes draw from other seeds than square ones


def square_scene(number: int) -> Scene:
    """Return training scene ``number`` on a square canvas."""
    return random_scene(number)


def wide_scene(number: int) -> Scene:
    """Return training scene ``number`` on a wide canvas."""
    return random_scene(_WIDE_SEEDS + number, wide=True)


SHAPES: dict[str, Callable[[int], Scene]] = {"square": square_scene, "wide": wide_scene}


def captions_of(scene: Scene) -> list[str]:
    """Return the captions of a training scene."""
    return [caption(scene, scene.seed * CAPTIONS_EACH + number) for number in range(CAPTIONS_EACH)]


def _write(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(state, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def write_latents(folder: Path, vae: TinyVAE, shape: str, shard: int, processes: int) -> None:
    """Draw a shard's scenes and write their latents in fp16, unless the file exists."""
    path = folder / f"latents{vae.channels}-{shape}-{shard}.pt"
    if path.is_file():
        return
    seeds = range(shard * SHARD, (shard + 1) * SHARD)
    pictures = draw_many(SHAPES[shape], seeds, processes)
    parts = []
    device = next(vae.parameters()).device
    for start in range(0, SHARD, 64):
        x = torch.from_numpy(np.array(pictures[start : start + 64])).permute(0, 3, 1, 2)
        x = (x.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        parts.append(vae.encode(x).half().cpu().contiguous())
    _write({"latents": torch.cat(parts)}, path)
    logging.info("latents of %s shard %d written", shape, shard)


@torch.no_grad()
def write_contexts(
    folder: Path,
    encoder: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    shape: str,
    shard: int,
    name: str = CONTEXTS[16],
) -> None:
    """Encode a shard's captions and write them in fp16, unless the file exists.

    The file holds ``tokens`` (kept tokens, WIDTH), ``starts`` (captions + 1,) and ``lengths``
    (captions,): the numbers of real tokens, including start and end. ``KEPT_PADDING`` padding
    tokens follow those of each caption.

    Args:
        folder: Folder of the shards.
        encoder: A ``TextEncoder`` for base B, ``TextEncoder.last_hidden_state`` for base A.
        tokenizer: Tokenizer of CLIP.
        shape: Shape of the scenes, "square" or "wide".
        shard: Number of the shard.
        name: Beginning of the file name.
    """
    path = folder / f"{name}-{shape}-{shard}.pt"
    if path.is_file():
        return
    scenes = [SHAPES[shape](number) for number in range(shard * SHARD, (shard + 1) * SHARD)]
    texts = [text for scene in scenes for text in captions_of(scene)]
    lengths = [len(tokenizer.words(text)) + 2 for text in texts]
    kept: list[Tensor] = [torch.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for start in range(0, len(order), 64):
        numbers = order[start : start + 64]
        length = max(lengths[number] for number in numbers) + KEPT_PADDING
        encoded = encoder(tokenizer.ids([texts[number] for number in numbers], length))
        for row, number in zip(encoded, numbers, strict=True):
            kept[number] = row[: lengths[number] + KEPT_PADDING].half()
    starts = np.cumsum([0, *(len(row) for row in kept)])
    state = {
        "tokens": torch.cat(kept),
        "starts": torch.from_numpy(starts),
        "lengths": torch.tensor(lengths),
    }
    _write(state, path)
    logging.info("captions of %s shard %d encoded", shape, shard)


def padded(rows: list[Tensor], lengths: list[int]) -> ContextRows:
    """Return prompts of different lengths as one batch.

    Args:
        rows: Real tokens and ``KEPT_PADDING`` padding tokens of each prompt, (tokens, WIDTH).
        lengths: Number of real tokens of each prompt.
    """
    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, WIDTH)
    log_counts = torch.full((len(rows), longest), float("-inf"))
    pooled = torch.empty(len(rows), WIDTH)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[number, : len(row)] = row.float()
        log_counts[number, :length] = 0.0
        kept = len(row) - length
        log_counts[number, length : len(row)] = float(np.log((POSITIONS - length) / kept))
        pooled[number] = final_norm(row[length - 1].float())
    return ContextRows(tokens, pooled, log_counts)


@dataclass
class Shard:
    """The latents and encoded captions of one shard's scenes."""

    latents: Tensor
    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def load(cls, folder: Path, channels: int, shape: str, number: int) -> Shard:
        """Return a shard whose two files are memory-mapped."""
        latents = torch.load(
            folder / f"latents{channels}-{shape}-{number}.pt", mmap=True, weights_only=True
        )
        path = folder / f"{CONTEXTS[channels]}-{shape}-{number}.pt"
        texts = torch.load(path, mmap=True, weights_only=True)
        return cls(latents["latents"], texts["tokens"], texts["starts"], texts["lengths"])

    def text(self, scene: int, form: int) -> tuple[Tensor, int]:
        """Return a caption's kept tokens and its number of real tokens."""
        place = scene * CAPTIONS_EACH + form
        start, end = self.starts[place : place + 2].tolist()
        return self.tokens[start:end], int(self.lengths[place])


class Rows:
    """All shards of both shapes.

    Args:
        folder: Folder of the shards.
        channels: Number of latent channels.
        shards: Number of shards by shape.
        empty: Kept tokens of the empty caption and its number of real tokens.
    """

    def __init__(
        self, folder: Path, channels: int, shards: dict[str, int], empty: tuple[Tensor, int]
    ) -> None:
        self.shards = {
            shape: [Shard.load(folder, channels, shape, number) for number in range(count)]
            for shape, count in shards.items()
        }
        self.empty = empty

    def draw(
        self, shape: str, batch: int, empty_share: float, generator: torch.Generator
    ) -> tuple[Tensor, list[tuple[Tensor, int]]]:
        """Return random latents (batch, channels, height, width) and a caption for each.

        The draw depends only on the generator, so a resumed training sees the same rows.
        """
        shards = self.shards[shape]
        chosen = torch.randint(len(shards) * SHARD, (batch,), generator=generator).tolist()
        forms = torch.randint(CAPTIONS_EACH, (batch,), generator=generator).tolist()
        empty = (torch.rand(batch, generator=generator) < empty_share).tolist()
        latents, texts = [], []
        for number, form, none in zip(chosen, forms, empty, strict=True):
            shard, place = shards[number // SHARD], number % SHARD
            latents.append(shard.latents[place])
            texts.append(self.empty if none else shard.text(place, form))
        return torch.stack(latents).float(), texts


def encoded_empty(encoder: Callable[[Tensor], Tensor], tokenizer: Tokenizer) -> tuple[Tensor, int]:
    """Return the empty caption's kept tokens and its number of real tokens."""
    with torch.no_grad():
        return encoder(tokenizer.ids([""], 2 + KEPT_PADDING))[0].half(), 2


def full_prompts(encoder: TextEncoder, tokenizer: Tokenizer, captions: list[str]) -> ContextRows:
    """Return prompts with all 77 tokens, as ComfyUI passes them to the denoiser."""
    with torch.no_grad():
        ids = tokenizer.ids(captions)
        tokens = encoder(ids)
        pooled = final_norm(at_end(tokens, ids))
    return ContextRows(tokens, pooled, torch.zeros(tokens.shape[:2]))
