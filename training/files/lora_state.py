"""LoRAs as state dicts: what travels on LORA_MODEL wires and lies in files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...lora_ops import LowRank
from ...lora_ops.keys import factor_keys


class LoraState(dict[str, Tensor]):
    """A LoRA by file key, with the metadata of its file.

    Tensors lie on the CPU, are contiguous and never share storage: core's Save LoRA needs that.

    Args:
        tensors: By the keys of the saved file.
        metadata: Strings by strings, as safetensors keeps them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})


def lora_state(
    layers: Mapping[str, LowRank],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> LoraState:
    """Return the state dict of low-rank layers, alpha written out.

    Args:
        layers: Factors by layer name, as ``keys.factor_keys`` takes it.
        metadata: Strings by strings.
        dtype: Of the factors in the result.
    """
    tensors: dict[str, Tensor] = {}
    for layer, factors in layers.items():
        keys = factor_keys(layer)
        tensors[keys.down] = _owned(factors.down, dtype)
        tensors[keys.up] = _owned(factors.up, dtype)
        alpha = float(factors.rank) if factors.alpha is None else factors.alpha
        tensors[keys.alpha] = torch.tensor(alpha)
    return LoraState(tensors, metadata)


def metadata_of(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of a LoRA on a wire; a plain dict, as core's trainer makes, has none."""
    return dict(lora.metadata) if isinstance(lora, LoraState) else {}


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
