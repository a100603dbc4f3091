"""Assemble a full SD3 or SD1.5 checkpoint from a base's small int8 asset, and write such assets.

This needs only torch, NumPy and safetensors; neither ComfyUI nor the drawings have to be present.
Stock ``CheckpointLoaderSimple`` loads the result.
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

from . import mmdit, unet
from .text_encoder import SEED, assembled

VERSION = "1"
# The attributions that travel in every base's metadata; THIRD_PARTY_NOTICES.md has the licences.
ATTRIBUTION = (
    "Trained on rendered and recomposed drawings of Fluent Emoji Flat (Microsoft Corporation, "
    "MIT), Noto Emoji (Google Inc, Apache 2.0), Twitter Emoji (Twitter, CC BY 4.0) and Emoji One "
    "(Emoji One, CC BY 4.0); its VAE also on Fluent Emoji and Fluent Emoji High Contrast "
    "(Microsoft Corporation, MIT). No endorsement by their authors. "
    "Sources and licences: THIRD_PARTY_NOTICES.md. These weights: CC BY 4.0."
)
METADATA_KEY = "drawn_base"  # entry of a checkpoint's metadata that holds all of it as JSON
DENOISER, VAE, TEXT = "denoiser.", "vae.", "text."
SCALE = ".int8_scale"
# Key prefixes of denoiser, VAE and text encoder in the checkpoint of each base.
PREFIXES = {
    "a": ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."),
    "b": ("model.diffusion_model.", "first_stage_model.", "text_encoders.clip_l.transformer."),
}

CHECKPOINT_STATES = {"a": unet.checkpoint_state, "b": mmdit.checkpoint_state}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight of two or more dimensions to int8 with one scale per output channel.

    Args:
        weight: Weight ``(out, ...)`` of any float dtype.

    Returns:
        The int8 weight and its fp32 scales ``(out,)``; the error is at most half a scale.
    """
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view(weight.shape), scale


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the fp32 weight of an int8 weight and its scales."""
    return weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))


def write_asset(
    path: Path,
    base: str,
    denoiser: dict[str, Tensor],
    vae: dict[str, Tensor],
    text: dict[str, Tensor],
    metadata: dict[str, str],
    *,
    int8: bool = True,
) -> None:
    """Write a base's asset: matrices in int8 with scales, vectors and the VAE in fp16.

    Args:
        path: File to write.
        base: Name of the base, "a" or "b".
        denoiser: State of the denoiser, with the keys of its training.
        vae: State of a ``TinyVAE``.
        text: Result of ``TextEncoder.trained``.
        metadata: Further metadata, such as world and steps.
        int8: Whether matrices are stored in int8; False keeps them in fp16, for comparisons.
    """
    tensors = {}
    for prefix, part in ((DENOISER, denoiser), (VAE, vae), (TEXT, text)):
        for key, value in part.items():
            name = f"{prefix}{key}"
            if not value.is_floating_point():
                tensors[name] = value.to(torch.int32)
            elif int8 and value.ndim >= 2 and prefix != VAE:
                tensors[name], tensors[name + SCALE] = quantised(value)
            else:
                tensors[name] = value.half() if value.ndim else value.float()
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    _save(tensors, path, {"format": "pt", "base": base, "attribution": ATTRIBUTION, **metadata})


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, so that no process reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, str(temporary), metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of an asset, or of the asset that a checkpoint was assembled from."""
    with safe_open(str(path), framework="pt") as file:
        metadata = dict(file.metadata() or {})
    return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else metadata


def stored_parts(asset: Path) -> dict[str, dict[str, Tensor]]:
    """Return an asset's denoiser, VAE and text encoder changes, with int8 converted to fp32."""
    stored = load_file(str(asset))
    parts: dict[str, dict[str, Tensor]] = {DENOISER: {}, VAE: {}, TEXT: {}}
    for key, value in stored.items():
        if key.endswith(SCALE):
            continue
        scale = stored.get(key + SCALE)
        prefix = next(prefix for prefix in parts if key.startswith(prefix))
        whole = value if scale is None else dequantised(value, scale)
        parts[prefix][key[len(prefix) :]] = whole
    return parts


def assemble(asset_path: str | Path, out_path: str | Path) -> Path:
    """Write the checkpoint of an asset and return its path.

    A checkpoint that was assembled from the same asset is not written again.

    Raises:
        ValueError: The asset is missing or truncated.
    """
    asset, out = Path(asset_path), Path(out_path)
    if not asset.is_file():
        raise ValueError(f"a base's asset must be a file, got {asset}; check the pack out again")
    try:
        metadata = metadata_of(asset)
        digest = hashlib.sha256(asset.read_bytes()).hexdigest()
        record = {**metadata, "asset": digest, "assembler": f"{VERSION}/{SEED}"}
        if out.exists() and metadata_of(out) == record:
            return out
        parts = stored_parts(asset)
    except Exception as error:
        raise ValueError(
            f"a base's asset must be a whole safetensors file, got {asset.name} with "
            f"{asset.stat().st_size} bytes; check the pack out again"
        ) from error
    denoiser, vae, text = PREFIXES[metadata["base"]]
    whole = CHECKPOINT_STATES[metadata["base"]](parts[DENOISER])
    tensors = {denoiser + k: v.half() for k, v in whole.items()}
    tensors.update({vae + k: v for k, v in parts[VAE].items()})
    tensors.update({text + k: v for k, v in assembled(parts[TEXT]).items()})
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    # All metadata is one entry, because safetensors writes several in random order and equal
    # checkpoints should be equal byte for byte.
    _save(tensors, out, {METADATA_KEY: json.dumps(record, sort_keys=True)})
    return out
