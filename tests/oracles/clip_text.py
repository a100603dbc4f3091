"""CLIP's text model written out in float64, out of place, for gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def encode(
    state: Mapping[str, Tensor],
    rows: Tensor,
    loras: Mapping[str, tuple[Tensor, Tensor]],
    heads: int = 12,
) -> Tensor:
    """Return the last hidden states of one prompt after the final norm, ``(token, channel)``.

    Args:
        state: Weights by ComfyUI's names below ``transformer.text_model.``, float64.
        rows: Token embeddings, ``(token, channel)``.
        loras: ``down`` and ``up`` by layer path, such as ``encoder.layers.0.self_attn.q_proj``.
        heads: Of every layer.
    """

    def linear(x: Tensor, path: str) -> Tensor:
        y = x @ state[f"{path}.weight"].T + state[f"{path}.bias"]
        if path in loras:
            down, up = loras[path]
            y = y + x @ down.T @ up.T
        return y

    def norm(x: Tensor, path: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * state[f"{path}.weight"] + state[f"{path}.bias"]

    x = rows + state["embeddings.position_embedding.weight"][: len(rows)]
    future = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1)
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    for number in range(layers):
        path = f"encoder.layers.{number}"
        normed = norm(x, f"{path}.layer_norm1")
        q, k, v = (
            linear(normed, f"{path}.self_attn.{part}_proj")
            .unflatten(1, (heads, -1))
            .transpose(0, 1)
            for part in "qkv"
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5 + future  # (head, token, token)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(mixed, f"{path}.self_attn.out_proj")
        hidden = linear(norm(x, f"{path}.layer_norm2"), f"{path}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{path}.mlp.fc2")
    return norm(x, "final_layer_norm")
