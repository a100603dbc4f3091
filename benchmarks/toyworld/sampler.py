"""Stock ComfyUI nodes in one process: load a checkpoint, sample prompts, decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .text import add_comfyui

STEPS, CFG, SAMPLER, SCHEDULER = 20, 5.0, "euler", "normal"


class StockSampler:
    """CheckpointLoaderSimple, CLIPTextEncode, EmptyLatentImage, KSampler and VAEDecode."""

    def __init__(self, comfyui: Path, checkpoint: Path) -> None:
        add_comfyui(comfyui)
        import folder_paths

        import nodes

        folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
        self.nodes = nodes
        loader = nodes.CheckpointLoaderSimple()
        self.model, self.clip, self.vae = loader.load_checkpoint(checkpoint.name)
        self.contexts: dict[str, list] = {}

    def encode(self, prompt: str) -> list:
        """CONDITIONING of a prompt, kept for the next time."""
        if prompt not in self.contexts:
            self.contexts[prompt] = self.nodes.CLIPTextEncode().encode(self.clip, prompt)[0]
        return self.contexts[prompt]

    def sample(
        self,
        prompts: Sequence[str],
        seed: int,
        *,
        width: int = 64,
        cfg: float = CFG,
        steps: int = STEPS,
    ) -> Tensor:
        """One picture per prompt, (prompt, 64, width, 3) in 0..1, all in one KSampler call."""
        entries = [self.encode(prompt)[0] for prompt in prompts]
        context = torch.cat([entry[0] for entry in entries])
        pooled = torch.cat([entry[1]["pooled_output"] for entry in entries])
        positive = [[context, {"pooled_output": pooled}]]
        with torch.inference_mode():
            latent = self.nodes.EmptyLatentImage().generate(width, 64, len(prompts))[0]
            sampled = self.nodes.KSampler().sample(
                self.model, seed, steps, cfg, SAMPLER, SCHEDULER, positive, self.encode(""), latent
            )[0]
            pictures = self.nodes.VAEDecode().decode(self.vae, sampled)[0]
        return pictures.clone()
