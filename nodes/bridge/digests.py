"""Compute short digests of MODEL, CLIP and VAE from their content instead of their file names.

The digest of a base does not depend on whether it is loaded, offloaded, partly on another device
or read again after a restart, because unpatched weights and patches are hashed separately.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import comfy.model_patcher
import comfy.quant_ops
import comfy.sd
import comfy.utils
import torch
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel
from comfy.weight_adapter import BypassInjectionManager, WeightAdapterBase
from torch import Tensor, nn

from .families import class_names

# Of every large weight only this many runs of neighbouring values are read, so that few memory
# pages are touched.
SAMPLED_RUNS = 4
RUN_LENGTH = 64

_SAMPLING = "model_sampling"
# In SD1.5 and SDXL no file contains this weight and nothing reads it: it is uninitialised memory.
_UNINITIALISED = "clip_l.transformer.text_projection.weight"


def model_digest(model: comfy.model_patcher.ModelPatcher) -> dict[str, str]:
    """Return the digests of a patcher's class, weights, patches and sampling, by name."""
    sampling = model.get_model_object(_SAMPLING) if hasattr(model.model, _SAMPLING) else None
    config = getattr(getattr(model.model, "model_config", None), "unet_config", None)
    objects = {name: value for name, value in model.object_patches.items() if name != _SAMPLING}
    return {
        "class": f"{' '.join(class_names(model))} {_hash(config)}",
        "weights": _weights_digest(model),
        "patches": _hash([dict(model.patches), objects]),
        "sampling": _hash(sampling),
    }


def clip_digest(clip: comfy.sd.CLIP) -> dict[str, str]:
    """Return the digests of a text encoder, including the index of its output layer."""
    options = [clip.layer_idx, clip.tokenizer_options, clip.use_clip_schedule]
    attached = [_hooks(clip.patcher), _injections(clip.patcher)]
    return {
        **model_digest(clip.patcher),
        "options": _hash(options),
        "hooks": _hash(attached),
    }


def vae_digest(vae: comfy.sd.VAE) -> dict[str, str]:
    """Return the digests of a VAE."""
    return {**model_digest(vae.patcher), "options": _hash([vae.vae_dtype])}


def content_digest(value: Any) -> str:
    """Return a digest over all bytes of the tensors, arrays and plain values in ``value``."""
    return _hash(value, whole=True)


def _hooks(patcher: comfy.model_patcher.ModelPatcher) -> list[Any]:
    """Return the patches of a patcher's hooks, such as Set CLIP Hooks adds, and their keyframes."""
    forced = [] if patcher.forced_hooks is None else patcher.forced_hooks.hooks
    frames = [
        [_plain_attributes(frame) for frame in hook.hook_keyframe.keyframes] for hook in forced
    ]
    return [list(patcher.hook_patches.values()), frames]


def _injections(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """Return the patcher's injections, such as LoRAs in ComfyUI's bypass mode, by name.

    ComfyUI casts these LoRAs to their layer's dtype at the first use; here they are cast before, so
    that the digest does not change. Only the names of other packs' injections are known.
    """
    found: dict[str, Any] = {}
    for name, injections in patcher.injections.items():
        for injection in injections:
            parts = found.setdefault(name, [])
            parts.append(injection.inject.__qualname__)
            for cell in getattr(injection.inject, "__closure__", None) or ():
                if isinstance(cell.cell_contents, BypassInjectionManager):
                    parts += _bypass_loras(patcher.model, cell.cell_contents)
    return found


def _bypass_loras(network: nn.Module, manager: BypassInjectionManager) -> Iterator[list[Any]]:
    for key, (adapter, strength) in manager.adapters.items():
        weight = cast(Tensor, comfy.utils.get_attr(network, f"{key}.weight"))
        dtype = weight.dtype
        castable = dtype in (torch.float32, torch.float16, torch.bfloat16)
        weights = [
            part.to(dtype) if castable and isinstance(part, Tensor) else part
            for part in cast(WeightAdapterBase, adapter).weights
        ]
        yield [key, strength, type(adapter).__name__, weights]


def _weights_digest(model: comfy.model_patcher.ModelPatcher) -> str:
    digest = hashlib.sha256()
    # These modules may stand in for the base's own while it is loaded.
    replaced = {_SAMPLING, *model.object_patches}
    if isinstance(model.model, (SD1ClipModel, SDXLClipModel)):
        replaced.add(_UNINITIALISED)
    for key, weight, dtype in sorted(_unpatched(model), key=lambda entry: entry[0]):
        if key.startswith(tuple(replaced)):
            continue
        digest.update(key.encode())
        _update(digest, weight, False, dtype)
    return digest.hexdigest()[:16]


def _unpatched(
    model: comfy.model_patcher.ModelPatcher,
) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """Yield every weight and stored buffer without patches, with the dtype it is used in."""
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


def _hash(value: Any, whole: bool = False) -> str:
    digest = hashlib.sha256()
    _update(digest, value, whole)
    return digest.hexdigest()[:16]


def _update(digest: Any, value: Any, whole: bool, dtype: torch.dtype | None = None) -> None:
    """Feed type, shape and content of ``value`` into the digest, but no object identities."""
    if isinstance(value, comfy.quant_ops.QuantizedTensor):
        # ComfyUI's stand-in for a missing comfy_kitchen lacks these attributes.
        data, params = value._qdata, value._params  # pyright: ignore[reportAttributeAccessIssue]
        _update(digest, [data, params], whole)
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
        _update(
            digest, [_bases(type(value)), dict(value.state_dict()), _plain_attributes(value)], whole
        )
    elif hasattr(value, "weights"):  # one of ComfyUI's weight adapters, such as LoRA, LoHa or LoKr
        adapter = cast(WeightAdapterBase, value)
        _update(digest, [type(adapter).__name__, adapter.weights], whole)
    else:
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        digest.update(f"object {name} ".encode())
        _update(digest, _plain_attributes(value), whole)


def _bases(kind: type) -> list[str]:
    """Return the names of a class and its bases; ComfyUI composes sampling classes at run time."""
    return [base.__name__ for base in kind.__mro__]


def _plain_attributes(value: Any) -> dict[str, Any]:
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
