"""LoRA files of every usual trainer as ``LoraState``, and their precision in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lora_ops.keys import ALPHA, DOWN, MID, UP, part_key, parts_by_layer
from .adapter_shapes import change_of
from .lora_state import LoraState
from .tensor_file import read_header, read_tensors

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What the factors of a file may be stored in."""

_ADAPTER_CONFIG = "lora_adapter_metadata"
"""Where diffusers and PEFT keep alpha: their configuration as JSON."""

_LARGEST = torch.finfo(torch.float16).max
"""Change of a weight: more is no training's and makes half precision infinite."""

_LONGEST_NAME = 80
"""Of a layer in a message, cut where a file's keys are long."""


def read_lora(path: Path) -> LoraState:
    """Return a LoRA file, its keys in this pack's spelling where that is a pure renaming.

    Reads files of this pack, of ComfyUI's trainer, kohya, diffusers, PEFT and the released Pair
    Customization code. All is checked: a file is read whole or refused.

    Raises:
        ValueError: It is no whole safetensors file or no LoRA; the message says why.
    """
    header = read_header(path)
    name = path.name
    try:
        # Before the tensors are read: a checkpoint in the wrong folder may have many gigabytes.
        layers = parts_by_layer(header.entries)
    except ValueError as error:
        raise ValueError(f"{name!r} must be a LoRA, but {error}; choose another file") from error
    if not layers:
        raise ValueError(f"{name!r} must be a LoRA, got a file without any layer; choose another")
    tensors = read_tensors(path)
    fault = fault_of(tensors)
    if fault is not None:
        raise ValueError(f"{name!r} must be a sound LoRA, but {fault}; choose another file")
    metadata = dict(header.metadata)
    alphas = _config_alphas(metadata.pop(_ADAPTER_CONFIG, "{}"), layers, tensors, name)
    return LoraState({**respelled(tensors), **alphas}, metadata)


def respelled(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA under this pack's keys where that is a pure renaming.

    UNet layers get kohya's names, which ComfyUI maps; all other names are ComfyUI's already.

    Raises:
        ValueError: A key is of no known trainer.
    """
    return {
        part_key(layer, part, has_mid=MID in parts): lora[key]
        for layer, parts in parts_by_layer(lora).items()
        for part, key in parts.items()
    }


def fault_of(lora: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a LoRA's tensors, in words; None if nothing is."""
    for layer, parts in parts_by_layer(lora).items():
        fault = _fault({part: lora[key] for part, key in parts.items()})
        if fault is not None:
            return f"layer {layer[:_LONGEST_NAME]!r} {fault}"
    return None


def sound(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA, which may come from another pack's loader, respelled and checked.

    Raises:
        ValueError: A key is of no known trainer, or a layer is damaged.
    """
    try:
        fault = fault_of(lora)
    except ValueError as error:
        fault = str(error)
    if fault is not None:
        raise ValueError(f"the LoRA must be sound, but {fault}; choose another file")
    return respelled(lora)


def require_named_once(layers: Iterable[str], targets: Mapping[str, object]) -> None:
    """Check that no two of a LoRA's layers mean the same layer of a model: one would be lost.

    Args:
        layers: Names in the LoRA.
        targets: What a layer's name means in the model; names without a meaning may lack.

    Raises:
        ValueError: Two do.
    """
    named: dict[object, str] = {}
    for layer in layers:
        if layer in targets and named.setdefault(targets[layer], layer) != layer:
            raise ValueError(
                "the LoRA must name every layer of the model once, got "
                f"{named[targets[layer]]!r} and {layer!r} for the same one; choose another file"
            )


def in_precision(lora: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return a LoRA's tensors as a file keeps them: contiguous, alone in memory, alpha in fp32.

    Args:
        lora: By file key; a plain dict serves too.
        precision: One of ``PRECISIONS``.

    Raises:
        ValueError: It is no LoRA, is broken, or has numbers that the precision cannot hold.
    """
    fault = fault_of(lora) if lora else "it has no layers"
    if fault is not None:
        raise ValueError(f"a sound LoRA must be saved, but {fault}; train it again")
    stored: dict[str, Tensor] = {}
    for key, tensor in respelled(lora).items():
        dtype = PRECISIONS[precision] if tensor.is_floating_point() else tensor.dtype
        if key.endswith(f".{ALPHA}"):  # one number that scales the whole layer
            dtype = torch.float32
        stored[key] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if not _finite(stored[key]):
            raise ValueError(
                f"precision must hold every number of the LoRA, {precision} is too small for "
                f"{key!r}; choose bf16 or fp32"
            )
    return stored


def rank_and_alpha(lora: Mapping[str, Tensor]) -> tuple[int, float] | None:
    """Return the rank and alpha that all layers of a LoRA share, or None if they differ."""
    found = set()
    for parts in parts_by_layer(lora).values():
        if DOWN in parts:
            rank = lora[parts[DOWN]].shape[0]
            found.add((rank, float(lora[parts[ALPHA]]) if ALPHA in parts else float(rank)))
    return found.pop() if len(found) == 1 else None


def _fault(parts: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a layer's tensors, None if nothing is."""
    for part, tensor in parts.items():
        if not _finite(tensor):
            return "holds numbers that are not finite"
        if part == ALPHA and tensor.numel() != 1:
            return f"has an alpha of {tensor.numel()} numbers"
    if set(parts) == {ALPHA}:
        return "has an alpha and nothing else"
    try:
        change_of(parts)
    except ValueError as error:
        return str(error)
    if DOWN in parts and _largest(parts) > _LARGEST:
        return f"holds numbers that may change a weight by more than {_LARGEST:g}"
    return None


def _largest(parts: Mapping[str, Tensor]) -> float:
    """Return a bound of what the factors of a layer can add to a weight."""
    bound = abs(float(parts[ALPHA])) if ALPHA in parts else float(parts[DOWN].shape[0])
    for part in (DOWN, UP, MID):
        if part in parts:
            bound *= float(_wide(parts[part]).abs().max())
    return bound


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(_wide(tensor)).all())


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor that can be asked for its largest number; fp8 has no such function."""
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()


def _config_alphas(
    text: str,
    layers: Mapping[str, Mapping[str, str]],
    tensors: Mapping[str, Tensor],
    name: str,
) -> dict[str, Tensor]:
    """Return the alphas that PEFT keeps in its configuration rather than in tensors."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unclear_scale(name, "cannot be read") from error
    if not isinstance(config, dict):
        raise _unclear_scale(name, "is not a table")
    alphas = {}
    for layer, parts in layers.items():
        if DOWN in parts and ALPHA not in parts:
            rank = tensors[parts[DOWN]].shape[0]
            alpha = _config_alpha(config, parts[DOWN].partition(".")[0], rank, name)
            if alpha is not None:
                alphas[part_key(layer, ALPHA)] = torch.tensor(alpha)
    return alphas


def _config_alpha(config: Mapping[str, Any], root: str, rank: int, name: str) -> float | None:
    """Return a layer's alpha; ``root`` is the model's name that diffusers puts before settings."""

    def setting(key: str) -> Any:
        return config.get(f"{root}.{key}", config.get(key))

    if setting("alpha_pattern"):
        raise _unclear_scale(name, "gives layers an alpha each")
    alpha = setting("lora_alpha")
    if alpha is None:
        return None
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise _unclear_scale(name, f"has an alpha of {alpha!r}")
    return float(alpha) * (math.sqrt(rank) if setting("use_rslora") else 1.0)


def _unclear_scale(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name!r} must say how its layers are scaled, but its {_ADAPTER_CONFIG} {why}; "
        "choose another file"
    )
