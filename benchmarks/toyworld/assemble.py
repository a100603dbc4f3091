"""Assemble the toy base: an int8 asset plus a seed become a full SD1.5 checkpoint.

Needs torch, NumPy and safetensors alone, no ComfyUI. Stock ``CheckpointLoaderSimple`` loads the
result, since its keys and shapes are SD1.5's with one UNet level and a TAESD VAE.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .clip import SEED, clip_state

VERSION = "1"
FACTS = "toyworld_base"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
SCALE_SUFFIX = ".int8_scale"


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight of two or more dimensions to int8 with one scale per output channel.

    Args:
        weight: ``(out, ...)``, any float dtype.

    Returns:
        The int8 weight and its fp32 scales ``(out,)``; the error is at most half a scale.
    """
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view(weight.shape), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """The fp16 weight of an int8 one."""
    return (weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))).half()


def write_asset(
    unet: dict[str, Tensor],
    vae: dict[str, Tensor],
    path: Path,
    metadata: dict[str, str],
    *,
    int8: bool = True,
) -> None:
    """Write the asset: UNet in int8 (vectors in fp16), VAE in fp16; all fp16 without ``int8``."""
    tensors = {}
    for key, value in unet.items():
        if int8 and value.ndim >= 2:
            tensors[UNET_PREFIX + key], scale = quantise(value)
            tensors[UNET_PREFIX + key + SCALE_SUFFIX] = scale
        else:
            tensors[UNET_PREFIX + key] = value.half()
    for key, value in vae.items():
        tensors[VAE_PREFIX + key] = value.half() if value.ndim else value.float()
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    _save(tensors, path, {"format": "pt", **metadata})


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file by a rename, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, str(temporary), metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def metadata_of(path: Path) -> dict[str, str]:
    """The facts written into a checkpoint (or an asset's metadata as it stands)."""
    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
    return json.loads(metadata[FACTS]) if FACTS in metadata else metadata


def _facts(asset: Path) -> dict[str, str]:
    digest = hashlib.sha256(asset.read_bytes()).hexdigest()
    return {**metadata_of(asset), "asset": digest, "assembler": f"{VERSION}/{SEED}"}


def stored_tensors(asset: Path) -> dict[str, Tensor]:
    """UNet and VAE of an asset under SD1.5's checkpoint keys, int8 weights turned into fp16."""
    stored = load_file(str(asset))
    tensors = {}
    for key, value in stored.items():
        if not key.endswith(SCALE_SUFFIX):
            scale = stored.get(key + SCALE_SUFFIX)
            tensors[key] = value if scale is None else dequantise(value, scale)
    return tensors


def assemble(asset_path: str | Path, out_path: str | Path) -> Path:
    """Write the SD1.5 checkpoint of an asset; returns its path.

    A file that already holds the same asset is left as it is.

    Raises:
        ValueError: The asset does not exist.
    """
    asset, out = Path(asset_path), Path(out_path)
    if not asset.is_file():
        raise ValueError(f"The toy base's asset must be a file, got {asset}; train it first.")
    facts = _facts(asset)
    if out.exists() and metadata_of(out) == facts:
        return out
    tensors = stored_tensors(asset)
    tensors.update({CLIP_PREFIX + key: value for key, value in clip_state().items()})
    # One entry: safetensors writes several in random order, and equal files should be equal bytes.
    _save(tensors, out, {FACTS: json.dumps(facts, sort_keys=True)})
    return out
