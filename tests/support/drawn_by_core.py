"""Pictures drawn by ComfyUI's own sampler nodes."""

from pathlib import Path

import torch
from pack.nodes.bridge.conditioning import encode_prompt

import nodes as core_nodes

SIDE = 64


def draw_with_core(
    model, clip, vae, prompt, seed, sampling, *, width=SIDE, height=SIDE, negative=""
):
    """Return the picture of a graph of core's Empty Latent, Text Encode, KSampler and Decode."""
    with torch.inference_mode():
        texts = [encode_prompt(clip, text) for text in (prompt, negative)]
        (empty_latent,) = core_nodes.EmptyLatentImage().generate(width, height)
        (latent,) = core_nodes.KSampler().sample(
            model,
            seed,
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            *texts,
            empty_latent,
        )
        return core_nodes.VAEDecode().decode(vae, latent)[0][:1]


def empty(file: Path) -> None:
    """Empty a file."""
    file.write_bytes(b"")
