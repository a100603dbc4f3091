"""Read concepts of the released Mix-of-Show code from ``.pth`` files, without executing them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...lora_ops import LowRank
from ...lora_ops.keys import DOWN, UP, kohya_layer, parse_key
from .concept import TEXT_WIDTHS, check_embeddings
from .lora_file import fault_of
from .lora_state import LoraState, lora_state

ENDING = ".pth"

_PARTS = ("new_concept_embedding", "text_encoder", "unet")
_TEXT_ROOT = "text_model."
_TEXT_LAYER = "lora_te_text_model_"
_METADATA = {
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "ss_base_model_version": "sd_v1",
}


def read_authors_concept(path: Path) -> tuple[dict[str, Tensor], LoraState, list[str]]:
    """Return a released concept's embeddings by text encoder, its LoRA, and its words.

    The words are joined in the file's order, because they were adjacent in every caption. The
    factors are not scaled, so alpha is the rank.

    Args:
        path: Path of a file written by ``torch.save``. Only tensors and plain containers are
            unpickled; a file with anything else is refused before any of it is executed.

    Raises:
        ValueError: It is not such a file; the message gives the reason.

    Reference: Gu et al. 2023, arXiv:2305.18292, the released code's checkpoints.
    """
    params = _params(path)
    embedding, text, unet = (params[part] for part in _PARTS)
    words, rows = list(embedding), list(embedding.values())
    name = path.name
    if not rows or any(row.ndim != 2 or row.shape != rows[0].shape for row in rows):
        shapes = ", ".join(str(tuple(row.shape)) for row in rows)
        found = f"the rows of its words are of the shapes {shapes}, not all of one"
        raise _unlike(name, found if rows else "it has no words")
    embeddings = {_encoder_of(rows[0], name): torch.stack(rows).float()}
    check_embeddings(embeddings, "".join(words).strip("<>")[:40])
    layers = {**_layers(text, name, _text_layer), **_layers(unet, name, kohya_layer)}
    lora = lora_state(layers, _METADATA)
    fault = fault_of(lora)
    if fault is not None:
        raise _unlike(name, fault)
    return embeddings, lora, words


def _params(path: Path) -> dict[str, dict[str, Tensor]]:
    name = path.name
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name!r} must hold tensors alone, got a file that asks for a program to run, or none "
            "that torch can read, and nothing in it was run; get the concept from another source"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{name!r} must be a whole file of torch, but it cannot be read; download it again"
        ) from error
    params = loaded.get("params", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(params, Mapping) or not isinstance(params.get(_PARTS[0]), Mapping):
        raise _unlike(name, f"it has no {_PARTS[0]}")
    found = {part: params.get(part, {}) for part in _PARTS}
    for part, tensors in found.items():
        if not isinstance(tensors, Mapping) or not all(
            isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in tensors.items()
        ):
            raise _unlike(name, f"its {part} holds something else than tensors")
    return {part: dict(tensors) for part, tensors in found.items()}


def _encoder_of(row: Tensor, name: str) -> str:
    """Return the text encoder of SD1.5, the only family that the released code trains."""
    width = TEXT_WIDTHS["clip_l"]
    if row.shape[1] != width:
        raise _unlike(name, f"its rows have {row.shape[1]} numbers where SD1.5's have {width}")
    return "clip_l"


def _text_layer(path: str) -> str:
    return _TEXT_LAYER + path.removeprefix(_TEXT_ROOT).replace(".", "_")


def _layers(
    tensors: Mapping[str, Tensor], name: str, named: Callable[[str], str]
) -> dict[str, LowRank]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None or parsed.part not in (DOWN, UP):
            raise _unlike(name, f"it has {key[:80]!r}, which is no factor of a LoRA")
        parts.setdefault(named(parsed.layer), {})[parsed.part] = tensor.float()
    for layer, factors in parts.items():
        shapes = [tuple(factors[part].shape) for part in (DOWN, UP) if part in factors]
        if len(shapes) < 2 or min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            found = " and ".join(map(str, shapes))
            raise _unlike(
                name, f"layer {layer[:80]!r} has {found} in place of two factors of one rank"
            )
    return {layer: LowRank(factors[DOWN], factors[UP]) for layer, factors in parts.items()}


def _unlike(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name!r} must be a concept of the released Mix-of-Show code, but {why}; "
        "choose another file"
    )
