"""Load a base's checkpoint and sample prompts with stock ComfyUI nodes in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .vocabulary import SIDE

STEPS, CFG = 24, 4.0
SAMPLERS = {"b": ("euler", "simple"), "a": ("euler", "normal")}
BATCH = 20


def add_comfyui(folder: Path) -> None:
    """Put a ComfyUI folder first on the module path, and set its CPU mode before other imports.

    Raises:
        ValueError: There is no ComfyUI.
    """
    if not (folder / "comfy").is_dir():
        raise ValueError(f"COMFYUI_PATH must be a ComfyUI folder, got {folder}; correct it")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


class StockSampler:
    """A sampler made of CheckpointLoaderSimple, CLIPTextEncode, KSampler and VAEDecode.

    Args:
        comfyui: Folder of ComfyUI.
        checkpoint: Checkpoint of an assembled base.
        base: ``b`` or ``a``.
    """

    def __init__(self, comfyui: Path, checkpoint: Path, base: str) -> None:
        add_comfyui(comfyui)
        import folder_paths

        import nodes

        folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
        self.nodes, self.sampler = nodes, SAMPLERS[base]
        loader = nodes.CheckpointLoaderSimple()
        self.model, self.clip, self.vae = loader.load_checkpoint(checkpoint.name)[:3]
        self.channels = self.model.model.latent_format.latent_channels
        self._encoded: dict[str, tuple[Tensor, dict]] = {}

    def _entry(self, prompt: str) -> tuple[Tensor, dict]:
        if prompt not in self._encoded:
            self._encoded[prompt] = self.nodes.CLIPTextEncode().encode(self.clip, prompt)[0][0]
        return self._encoded[prompt]

    def sample(
        self,
        prompts: Sequence[str],
        seed: int,
        *,
        wide: bool = False,
        cfg: float = CFG,
        steps: int = STEPS,
    ) -> Tensor:
        """Return one picture per prompt, (prompt, SIDE, SIDE or 2 * SIDE, 3) in 0..1."""
        pictures = []
        width = 2 * SIDE if wide else SIDE
        for start in range(0, len(prompts), BATCH):
            entries = [self._entry(prompt) for prompt in prompts[start : start + BATCH]]
            context = torch.cat([entry[0] for entry in entries])
            pooled = torch.cat([entry[1]["pooled_output"] for entry in entries])
            positive = [[context, {"pooled_output": pooled}]]
            empty = self._entry("")
            negative = [[empty[0], dict(empty[1])]]
            latent = {"samples": torch.zeros(len(entries), self.channels, SIDE // 8, width // 8)}
            with torch.inference_mode():
                sampled = self.nodes.KSampler().sample(
                    self.model, seed + start, steps, cfg, *self.sampler, positive, negative, latent
                )[0]
                pictures.append(self.nodes.VAEDecode().decode(self.vae, sampled)[0].clone())
        return torch.cat(pictures)
