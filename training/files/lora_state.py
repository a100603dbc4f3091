"""LoRAs as state dicts, the form on LORA_MODEL sockets and in files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...lora_ops import LowRank
from ...lora_ops.keys import factor_keys


class LoraState(dict[str, Tensor]):
    """A LoRA's tensors by file key, with the metadata of its file.

    Tensors are on the CPU, contiguous and without shared storage, as core's Save LoRA requires.

    Args:
        tensors: Tensors by the keys of the saved file.
        metadata: Metadata of the safetensors file, strings by strings.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        super().__init__(tensors)
        self.metadata: dict[str, str] = dict(metadata or {})


def lora_state(
    layers: Mapping[str, LowRank],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> LoraState:
    """Return the state dict of low-rank layers, with an explicit alpha for each.

    Args:
        layers: Factors by layer name, in one of the two spellings of ``keys.factor_keys``.
        metadata: Metadata of the file, strings by strings.
        dtype: Dtype of the factors in the result.
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
    """Return the metadata of a LoRA; a plain dict, as core's trainer returns, has none."""
    return dict(lora.metadata) if isinstance(lora, LoraState) else {}


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
