"""CLIP-L in full size from a seed: fixed pseudo-random weights that keep words apart.

Only the seed is stored. NumPy's ``RandomState`` streams are frozen for ever, so every machine
assembles the same text encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SEED = 20250
WIDTH, LAYERS, VOCABULARY, POSITIONS = 768, 12, 49408, 77
POSITION_STD = 0.35
# Small residual branches: a word then stays the largest part of its own token.
BRANCH_SCALE = 0.25


def _normal(random: np.random.RandomState, shape: tuple[int, ...], std: float) -> Tensor:
    values = random.standard_normal(shape).astype(np.float32) * np.float32(std)
    return torch.from_numpy(values).half()


def clip_state() -> dict[str, Tensor]:
    """The text encoder's state dict in fp16, keys from ``text_model.`` on."""
    random = np.random.RandomState(SEED)
    state = {
        "embeddings.token_embedding.weight": _normal(random, (VOCABULARY, WIDTH), 1.0),
        "embeddings.position_embedding.weight": _normal(random, (POSITIONS, WIDTH), POSITION_STD),
    }
    one, zero = torch.ones(WIDTH).half(), torch.zeros(WIDTH).half()
    for layer in range(LAYERS):
        prefix = f"encoder.layers.{layer}."
        for name, outputs, inputs, scale in (
            ("self_attn.q_proj", WIDTH, WIDTH, 1.0),
            ("self_attn.k_proj", WIDTH, WIDTH, 1.0),
            ("self_attn.v_proj", WIDTH, WIDTH, 1.0),
            ("self_attn.out_proj", WIDTH, WIDTH, BRANCH_SCALE),
            ("mlp.fc1", 4 * WIDTH, WIDTH, 1.0),
            ("mlp.fc2", WIDTH, 4 * WIDTH, BRANCH_SCALE),
        ):
            std = scale * inputs**-0.5
            state[f"{prefix}{name}.weight"] = _normal(random, (outputs, inputs), std)
            state[f"{prefix}{name}.bias"] = torch.zeros(outputs).half()
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{prefix}{norm}.weight"] = one.clone()
            state[f"{prefix}{norm}.bias"] = zero.clone()
    state["final_layer_norm.weight"] = one.clone()
    state["final_layer_norm.bias"] = zero.clone()
    return {f"text_model.{key}": value for key, value in state.items()}
