"""Random concepts for tiny models, and text encoders for their prompts."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path

import comfy.sd
import comfy.sdxl_clip
import safetensors.torch
import torch
from comfy.sd import CLIP
from gated_loras import random_factors
from pack.lora_ops import LowRank
from pack.nodes.bridge.families import identify
from pack.nodes.text.layer_contexts import context_layers
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.concept import TEXT_WIDTHS, Concept
from pack.training.files.lora_state import LoraState, lora_state
from tiny import CLIP_LAYERS, tiny_clip

_LARGE = 100_000_000  # numbers in a table; T5's embeddings have more
SPREAD = 0.025  # standard deviation of the tiny encoders' embeddings


def text_lora(seed: int, prefix: str = "lora_te") -> dict[str, LowRank]:
    """Return random factors for the tiny CLIP-L's attention."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    return {
        f"{prefix}_text_model_encoder_layers_{layer}_self_attn_{part}": LowRank(
            factor(4, 768), factor(768, 4)
        )
        for layer in range(CLIP_LAYERS)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    }


def rows_of(layers: int, encoders=("clip_l",), words: int = 2, seed: int = 0) -> dict:
    """Return random embeddings by text encoder, ``(word, layer, dim)`` each."""
    generator = torch.Generator().manual_seed(500 + seed)
    return {
        encoder: torch.randn(words, layers, TEXT_WIDTHS[encoder], generator=generator) * SPREAD
        for encoder in encoders
    }


def concept_for(
    model,
    name: str = "sks",
    *,
    seed: int = 0,
    encoders=("clip_l",),
    layers: int | None = None,
    lora: bool = True,
    rows: dict | None = None,
) -> Concept:
    """Return a random concept of a tiny model.

    Its words have one embedding per layer of the model, or ``layers`` embeddings.
    """
    factors = {}
    if lora:
        sites = training_sites(model, "attention")
        factors = {
            key: random_factors(site, seed + i) for i, (key, site) in enumerate(sites.items())
        }
        factors |= text_lora(seed)
    count = context_layers(model) if layers is None else layers
    metadata = {"modelspec.architecture": identify(model).architecture}
    return Concept(
        name,
        "dog",
        rows_of(count, encoders, seed=seed) if rows is None else rows,
        lora_state(factors, metadata) if lora else LoraState({}, metadata),
    )


def clip_with(folder: Path, clip: CLIP | None = None) -> CLIP:
    """Return a CLIP that looks up ``embedding:`` words in a folder, as stock loaders make it."""
    found = copy.copy(tiny_clip() if clip is None else clip)
    found.tokenizer = copy.copy(found.tokenizer)
    for attribute, tokenizer in list(vars(found.tokenizer).items()):
        if hasattr(tokenizer, "embedding_directory"):
            own = copy.copy(tokenizer)
            own.embedding_directory = [str(folder)]
            setattr(found.tokenizer, attribute, own)
    return found


def write_embedding(folder: Path, name: str, concept: Concept, layer: int | None) -> str:
    """Write one layer's embeddings, or their mean, as an ordinary embedding; return its word."""
    rows = {
        encoder: (rows.mean(1) if layer is None else rows[:, layer]).contiguous()
        for encoder, rows in concept.embeddings.items()
    }
    safetensors.torch.save_file(rows, str(folder / f"{name}.safetensors"))
    return f"embedding:{name}"


def stock(clip: CLIP, text: str) -> list:
    """Return a prompt as core's text node encodes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@cache
def tiny_sdxl_clip() -> CLIP:
    """Return SDXL's two text encoders, three layers each, with random weights."""
    shallow = {"num_hidden_layers": 3}  # the output of the last but one is used
    return random_clip(
        comfy.sdxl_clip.SDXLClipModel,
        comfy.sdxl_clip.SDXLTokenizer,
        {"clip_l_model_config": shallow, "clip_g_model_config": shallow},
    )


def random_clip(model, tokenizer, options: dict, tokenizer_data: dict | None = None) -> CLIP:
    """Return a CLIP of ComfyUI's classes with random weights.

    Args:
        model: Class of the text encoders.
        tokenizer: Class of the tokenizers.
        options: ``model_options``, which makes the encoders shallow.
        tokenizer_data: Data that a tokenizer reads from a real file.
    """

    class Target:
        params: dict = {}  # noqa: RUF012 - the same as in comfy.sd
        clip = model

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(
        Target,
        model_options={**options, "dtype": torch.float32},
        tokenizer_data=tokenizer_data or {},
    )
    generator = torch.Generator().manual_seed(3)
    for key, parameter in clip.cond_stage_model.named_parameters():
        parameter.data = _random(key, parameter.shape, generator)
    return clip


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return random values like those of ``tiny.random_state``.

    The rows of large tables overlap in memory, so that they take little of it.
    """
    if len(shape) < 2:
        return torch.full(shape, 0.0 if key.endswith("bias") else 1.0)
    spread = 0.7 / math.sqrt(math.prod(shape[1:]))
    if shape.numel() < _LARGE:
        return torch.randn(shape, generator=generator) * spread
    pool = torch.randn(sum(shape), generator=generator) * spread
    return pool.as_strided(shape, (1, 1))
