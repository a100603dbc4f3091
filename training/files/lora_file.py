"""Read LoRA files of all common trainers as ``LoraState``, and convert their precision."""

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

_ADAPTER_CONFIG = "lora_adapter_metadata"  # metadata key of the JSON config of diffusers and PEFT

_LARGEST = torch.finfo(torch.float16).max  # a larger change of a weight is infinite in fp16

_LONGEST_NAME = 80  # layer names in messages are cut to this length


def read_lora(path: Path) -> LoraState:
    """Return the LoRA in a file, with keys renamed to this pack's spelling where possible.

    Reads files of this pack, of ComfyUI's trainer, kohya, diffusers, PEFT and the released Pair
    Customization code. A file with any fault is refused.

    Raises:
        ValueError: It is not a complete safetensors file or not a LoRA; the message gives the
            reason.
    """
    header = read_header(path)
    name = path.name
    try:
        # Checked before the tensors are read: a checkpoint in the wrong folder may be very large.
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
    """Return a LoRA with keys renamed to this pack's spelling where possible.

    UNet layers get kohya's names, which ComfyUI maps; all other names are ComfyUI's already.

    Raises:
        ValueError: No known trainer writes such a key.
    """
    return {
        part_key(layer, part, has_mid=MID in parts): lora[key]
        for layer, parts in parts_by_layer(lora).items()
        for part, key in parts.items()
    }


def fault_of(lora: Mapping[str, Tensor]) -> str | None:
    """Return a description of the first fault in a LoRA's tensors; None if there is none."""
    for layer, parts in parts_by_layer(lora).items():
        fault = _fault({part: lora[key] for part, key in parts.items()})
        if fault is not None:
            return f"layer {layer[:_LONGEST_NAME]!r} {fault}"
    return None


def sound(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA, which may come from another pack's loader, with renamed and checked tensors.

    Raises:
        ValueError: No known trainer writes such a key, or a layer is damaged.
    """
    try:
        fault = fault_of(lora)
    except ValueError as error:
        fault = str(error)
    if fault is not None:
        raise ValueError(f"the LoRA must be sound, but {fault}; choose another file")
    return respelled(lora)


def require_named_once(layers: Iterable[str], targets: Mapping[str, object]) -> None:
    """Raise if two layers of a LoRA name the same layer of a model, because one would be lost.

    Args:
        layers: Layer names in the LoRA.
        targets: The model's layer by LoRA layer name; unknown names may be missing.

    Raises:
        ValueError: Two names have the same layer of the model.
    """
    named: dict[object, str] = {}
    for layer in layers:
        if layer in targets and named.setdefault(targets[layer], layer) != layer:
            raise ValueError(
                "the LoRA must name every layer of the model once, got "
                f"{named[targets[layer]]!r} and {layer!r} for the same one; choose another file"
            )


def in_precision(lora: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return a LoRA's tensors in a precision: contiguous, without shared memory, alpha in fp32.

    Args:
        lora: Tensors by file key, in a ``LoraState`` or a plain dict.
        precision: One of ``PRECISIONS``.

    Raises:
        ValueError: It is not a LoRA, is damaged, or has numbers outside the precision's range.
    """
    fault = fault_of(lora) if lora else "it has no layers"
    if fault is not None:
        raise ValueError(f"a sound LoRA must be saved, but {fault}; train it again")
    stored: dict[str, Tensor] = {}
    for key, tensor in respelled(lora).items():
        dtype = PRECISIONS[precision] if tensor.is_floating_point() else tensor.dtype
        if key.endswith(f".{ALPHA}"):  # a single number that scales the layer
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
    """Return a description of the fault in a layer's tensors; None if there is none."""
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
    """Return an upper bound of the change that a layer's factors make to a weight."""
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
    """Return the tensor in a dtype with a maximum function, which fp8 lacks."""
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()


def _config_alphas(
    text: str,
    layers: Mapping[str, Mapping[str, str]],
    tensors: Mapping[str, Tensor],
    name: str,
) -> dict[str, Tensor]:
    """Return the alphas that PEFT stores in its configuration, not in tensors."""
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
    """Return a layer's alpha; ``root`` is the model name that prefixes settings in diffusers."""

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
