"""What a run was trained on, as short digests: MODEL, CLIP and VAE by content, not by file name.

The digest of a base is the same whether it is loaded, offloaded, partly on another device, or
read anew after a restart: it looks at the weights before any patch, and at the patches apart.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.model_patcher
import comfy.quant_ops
import comfy.sd
import comfy.utils
import torch
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel
from comfy.weight_adapter import BypassInjectionManager
from torch import Tensor, nn

from .families import class_names

SAMPLED_RUNS = 4
RUN_LENGTH = 64
"""Of a weight, that many runs of that many neighbours are read: few enough to touch few pages."""

_SAMPLING = "model_sampling"
_UNREAD = "clip_l.transformer.text_projection.weight"
"""In SD1.5 and SDXL no file holds it and nothing reads it: it is whatever lay in memory."""


def model_digest(model: comfy.model_patcher.ModelPatcher) -> dict[str, str]:
    """Return the digests of a patcher's class, weights, patches and sampling, by name."""
    sampling = model.get_model_object(_SAMPLING) if hasattr(model.model, _SAMPLING) else None
    config = getattr(getattr(model.model, "model_config", None), "unet_config", None)
    objects = {name: value for name, value in model.object_patches.items() if name != _SAMPLING}
    return {
        "class": f"{' '.join(class_names(model))} {_short(config)}",
        "weights": _weights_digest(model),
        "patches": _short([dict(model.patches), objects]),
        "sampling": _short(sampling),
    }


def clip_digest(clip: comfy.sd.CLIP) -> dict[str, str]:
    """Return the digests of a text encoder, with the layer that is read from it."""
    options = [clip.layer_idx, clip.tokenizer_options, clip.use_clip_schedule]
    attached = [_hooks(clip.patcher), _injections(clip.patcher)]
    return {
        **model_digest(clip.patcher),
        "options": _short(options),
        "hooks": _short(attached),
    }


def vae_digest(vae: comfy.sd.VAE) -> dict[str, str]:
    """Return the digests of a VAE."""
    return {**model_digest(vae.patcher), "options": _short([vae.vae_dtype])}


def content_digest(value: Any) -> str:
    """Return a digest over all bytes of the tensors, arrays and plain values in ``value``."""
    return _short(value, whole=True)


def _hooks(patcher: comfy.model_patcher.ModelPatcher) -> list[Any]:
    """Return what hooks, such as Set CLIP Hooks attaches, patch, and when."""
    forced = [] if patcher.forced_hooks is None else patcher.forced_hooks.hooks
    frames = [[_numbers(frame) for frame in hook.hook_keyframe.keyframes] for hook in forced]
    return [list(patcher.hook_patches.values()), frames]


def _injections(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """Return what is put into the network's forward calls: LoRAs in ComfyUI's bypass mode.

    Such LoRAs are cast to their layer's dtype at the first use, here before. Of other packs'
    injections only the name is known.
    """
    found: dict[str, Any] = {}
    for name, injections in patcher.injections.items():
        for injection in injections:
            parts = found.setdefault(name, [])
            parts.append(injection.inject.__qualname__)
            for cell in getattr(injection.inject, "__closure__", None) or ():
                if isinstance(cell.cell_contents, BypassInjectionManager):
                    parts += _bypassed(patcher.model, cell.cell_contents)
    return found


def _bypassed(network: nn.Module, manager: BypassInjectionManager) -> Iterator[list[Any]]:
    for key, (adapter, strength) in manager.adapters.items():
        dtype = comfy.utils.get_attr(network, f"{key}.weight").dtype
        castable = dtype in (torch.float32, torch.float16, torch.bfloat16)
        weights = [
            part.to(dtype) if castable and isinstance(part, Tensor) else part
            for part in adapter.weights
        ]
        yield [key, strength, type(adapter).__name__, weights]


def _weights_digest(model: comfy.model_patcher.ModelPatcher) -> str:
    digest = hashlib.sha256()
    # These modules may stand in for the base's own while it is loaded.
    replaced = {_SAMPLING, *model.object_patches}
    if isinstance(model.model, (SD1ClipModel, SDXLClipModel)):
        replaced.add(_UNREAD)
    for key, weight, dtype in sorted(_unpatched(model), key=lambda entry: entry[0]):
        if key.startswith(tuple(replaced)):
            continue
        digest.update(key.encode())
        _update(digest, weight, False, dtype)
    return digest.hexdigest()[:16]


def _unpatched(
    model: comfy.model_patcher.ModelPatcher,
) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """Yield every weight and stored buffer as it is without patches, and its working dtype."""
    for prefix, module in model.model.named_modules():
        buffers = (
            entry
            for entry in module.named_buffers(recurse=False)
            if entry[0] not in module._non_persistent_buffers_set
        )
        for name, weight in (*module.named_parameters(recurse=False), *buffers):
            key = f"{prefix}.{name}" if prefix else name
            if key in model.backup:
                weight = model.backup[key].weight
            elif key in model.backup_buffers:
                weight = model.backup_buffers[key]
            elif key in model.hook_backup:
                weight = model.hook_backup[key][0]
            # Dynamic loading casts some weights to this dtype only once they are needed.
            yield key, weight, getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype


def _short(value: Any, whole: bool = False) -> str:
    digest = hashlib.sha256()
    _update(digest, value, whole)
    return digest.hexdigest()[:16]


def _update(digest: Any, value: Any, whole: bool, dtype: torch.dtype | None = None) -> None:
    """Feed ``value`` into the digest: its type, its shape and its content, nothing by identity."""
    if isinstance(value, comfy.quant_ops.QuantizedTensor):
        _update(digest, [value._qdata, value._params], whole)
    elif isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {dtype or value.dtype}".encode())
        if not value.is_meta:
            digest.update(_tensor_bytes(value.detach(), whole, dtype))
    elif isinstance(value, (str, int, float, bool, complex, bytes, type(None), torch.dtype)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        digest.update(f"map {len(value)};".encode())
        for key in sorted(value, key=repr):
            _update(digest, key, whole)
            _update(digest, value[key], whole)
    elif isinstance(value, (list, tuple, set, frozenset)):
        digest.update(f"list {len(value)};".encode())
        for item in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
            _update(digest, item, whole)
    elif isinstance(value, functools.partial):
        _update(digest, [value.func, value.args, value.keywords], whole)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _update(digest, [type(value).__name__, vars(value)], whole)
    elif isinstance(value, nn.Module):
        _update(digest, [_bases(type(value)), dict(value.state_dict()), _numbers(value)], whole)
    elif hasattr(value, "weights"):  # an adapter of ComfyUI's: LoRA, LoHa, LoKr, OFT …
        _update(digest, [type(value).__name__, value.weights], whole)
    else:
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        digest.update(f"object {name} ".encode())
        _update(digest, _numbers(value), whole)


def _bases(kind: type) -> list[str]:
    """Return the names of a class and its bases: ComfyUI composes sampling classes on the spot."""
    return [base.__name__ for base in kind.__mro__]


def _numbers(value: Any) -> dict[str, Any]:
    """Return the plain values among an object's own attributes."""
    plain = (str, int, float, bool, type(None), torch.dtype)
    return {
        name: entry
        for name, entry in getattr(value, "__dict__", {}).items()
        if isinstance(entry, plain) and not name.startswith("_")
    }


def _tensor_bytes(tensor: Tensor, whole: bool, dtype: torch.dtype | None) -> bytes:
    flat = tensor.reshape(-1)
    if not whole and flat.numel() > SAMPLED_RUNS * RUN_LENGTH:
        last = flat.numel() - RUN_LENGTH
        starts = [last * run // (SAMPLED_RUNS - 1) for run in range(SAMPLED_RUNS)]
        flat = torch.cat([flat[start : start + RUN_LENGTH] for start in starts])
    flat = flat.to("cpu", dtype or flat.dtype).contiguous()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
