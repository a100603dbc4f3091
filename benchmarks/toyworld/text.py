"""Caption contexts for training: the seeded text encoder, computed fast and apart from ComfyUI.

The tokenizer is ComfyUI's. In bf16 the contexts were measured 0.9 % (norm-wise) from those of stock
CLIPTextEncode on the assembled file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import LAYERS, POSITIONS, WIDTH, clip_state

HEADS = 12
START, END = 49406, 49407


def add_comfyui(folder: Path, *, cpu: bool = True) -> None:
    """Put a ComfyUI folder first on the module path and choose its CPU mode, before any import."""
    if not (folder / "comfy").is_dir():
        raise ValueError(f"COMFYUI_PATH must be a ComfyUI folder, got {folder}.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = cpu
    args.use_pytorch_cross_attention = True


def load_tokenizer(comfyui: Path) -> object:
    """The CLIP tokenizer whose files ComfyUI ships."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(comfyui / "comfy" / "sd1_tokenizer"))


def token_ids(tokenizer: object, captions: Sequence[str]) -> Tensor:
    """Start, words, end, and ends up to 77, as SD1 pads; (caption, 77)."""
    rows = []
    for text in captions:
        words = tokenizer(text).input_ids[1:-1]
        rows.append(([START, *words] + [END] * POSITIONS)[:POSITIONS])
    return torch.tensor(rows)


class CaptionEncoder:
    """CLIP-L's causal transformer over the seeded weights."""

    def __init__(self, comfyui: Path, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer, self.device = load_tokenizer(comfyui), device
        self.state = {key: value.to(device, dtype) for key, value in clip_state().items()}

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _attention(self, x: Tensor, prefix: str) -> Tensor:
        q, k, v = (
            self._linear(x, f"{prefix}{part}_proj").view(len(x), -1, HEADS, 64).transpose(1, 2)
            for part in "qkv"
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(out.transpose(1, 2).reshape(x.shape), f"{prefix}out_proj")

    @torch.no_grad()
    def encode(self, captions: Sequence[str], batch: int = 32) -> Tensor:
        """Contexts (caption, 77, 768) on the CPU, in the encoder's dtype."""
        parts = []
        embeddings = "text_model.embeddings."
        for start in range(0, len(captions), batch):
            ids = token_ids(self.tokenizer, captions[start : start + batch]).to(self.device)
            x = self.state[f"{embeddings}token_embedding.weight"][ids]
            x = x + self.state[f"{embeddings}position_embedding.weight"]
            for layer in range(LAYERS):
                prefix = f"text_model.encoder.layers.{layer}."
                normed = self._norm(x, f"{prefix}layer_norm1")
                x = x + self._attention(normed, f"{prefix}self_attn.")
                h = self._linear(self._norm(x, f"{prefix}layer_norm2"), f"{prefix}mlp.fc1")
                x = x + self._linear(h * torch.sigmoid(1.702 * h), f"{prefix}mlp.fc2")
            parts.append(self._norm(x, "text_model.final_layer_norm").cpu())
            if start // batch % 20 == 0:
                logging.info("captions encoded: %d of %d", start + len(ids), len(captions))
        return torch.cat(parts)
