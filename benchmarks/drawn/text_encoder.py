"""Define the bases' text encoder: CLIP-L's layout with seeded weights and trained changes.

All weights come from a seed. Three layers are active, and their weights have a trained low-rank
change. In the other nine, the last matrix of each residual branch is zero, so that they pass their
input on. The embeddings of the tokens that captions use are trained, near CLIP-L's norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, VOCABULARY, POSITIONS, HEADS = 768, 12, 49408, 77, 12
START, END = 49406, 49407
SEED = 20261
ACTIVE = (2, 5, 8)  # active layers, all before the last but one, whose output SD3 reads
RANK = 32  # rank of the trained change of each matrix
TOKEN_NORM = 0.38  # mean norm of the token embeddings, as in CLIP-L
POSITION_NORM = 0.2  # mean norm of the position embeddings
BRANCH_SCALE = 0.35  # scale of the last matrix of each residual branch in active layers
MATRICES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.out_proj": (WIDTH, WIDTH),
    "mlp.fc1": (4 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 4 * WIDTH),
}
_BRANCH_ENDS = ("self_attn.out_proj", "mlp.fc2")


def _normal(random: np.random.RandomState, shape: tuple[int, ...], std: float) -> Tensor:
    values = random.standard_normal(shape).astype(np.float32) * np.float32(std)
    return torch.from_numpy(values)


@cache
def seeded_weights() -> dict[str, Tensor]:
    """Return the untrained encoder in fp32, with keys that begin with ``text_model.``.

    NumPy guarantees that ``RandomState`` streams never change, so every machine gets the same
    weights.
    """
    random = np.random.RandomState(SEED)
    embeddings = "text_model.embeddings."
    tokens = _normal(random, (VOCABULARY, WIDTH), TOKEN_NORM * WIDTH**-0.5)
    positions = _normal(random, (POSITIONS, WIDTH), POSITION_NORM * WIDTH**-0.5)
    state = {
        f"{embeddings}token_embedding.weight": tokens,
        f"{embeddings}position_embedding.weight": positions,
    }
    for layer in range(LAYERS):
        prefix = f"text_model.encoder.layers.{layer}."
        for name, (outputs, inputs) in MATRICES.items():
            scale = 1.0
            if name in _BRANCH_ENDS:
                scale = BRANCH_SCALE if layer in ACTIVE else 0.0
            weight = _normal(random, (outputs, inputs), inputs**-0.5) * scale
            state[f"{prefix}{name}.weight"] = weight
            state[f"{prefix}{name}.bias"] = torch.zeros(outputs)
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{prefix}{norm}.weight"] = torch.ones(WIDTH)
            state[f"{prefix}{norm}.bias"] = torch.zeros(WIDTH)
    state["text_model.final_layer_norm.weight"] = torch.ones(WIDTH)
    state["text_model.final_layer_norm.bias"] = torch.zeros(WIDTH)
    return state


class Tokenizer:
    """CLIP's tokenizer, from the files that ComfyUI ships.

    Args:
        comfyui: Folder of ComfyUI.
    """

    def __init__(self, comfyui: Path) -> None:
        from transformers import CLIPTokenizer

        self._words = CLIPTokenizer.from_pretrained(str(comfyui / "comfy" / "sd1_tokenizer"))
        self._known: dict[str, list[int]] = {}

    def words(self, text: str) -> list[int]:
        """Return the token ids of a text without start and end."""
        if text not in self._known:
            self._known[text] = self._words(text).input_ids[1:-1]
        return self._known[text]

    def ids(self, captions: Sequence[str], length: int = POSITIONS) -> Tensor:
        """Return token ids with start and end, padded with end tokens as in ComfyUI; (caption, length).

        Raises:
            ValueError: A caption has more than ``length`` tokens.
        """
        rows = []
        for text in captions:
            row = [START, *self.words(text), END]
            if len(row) > length:
                raise ValueError(f"a caption must have at most {length} tokens, got {len(row)}")
            rows.append(row + [END] * (length - len(row)))
        return torch.tensor(rows)


class TextEncoder(nn.Module):
    """The encoder during training: seeded weights, trained embeddings and low-rank changes.

    Args:
        tokens: Token ids whose embeddings are trained.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        seeded = seeded_weights()
        self.tokens = list(tokens)
        embeddings = "text_model.embeddings."
        table = seeded[f"{embeddings}token_embedding.weight"]
        self.rows = nn.Parameter(table[self.tokens].clone())
        self.place = {token: place for place, token in enumerate(self.tokens)}
        self._positions = seeded[f"{embeddings}position_embedding.weight"]
        self.down, self.up, self._base = nn.ParameterDict(), nn.ParameterDict(), {}
        generator = torch.Generator().manual_seed(SEED)
        for layer in ACTIVE:
            for name, (outputs, inputs) in MATRICES.items():
                key = f"{layer}.{name}".replace(".", "_")
                self._base[key] = seeded[f"text_model.encoder.layers.{layer}.{name}.weight"]
                down = torch.randn(RANK, inputs, generator=generator) * inputs**-0.5
                self.down[key] = nn.Parameter(down)
                self.up[key] = nn.Parameter(torch.zeros(outputs, RANK))

    def _linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        key = f"{layer}.{name}".replace(".", "_")
        change = F.linear(F.linear(x, self.down[key]), self.up[key])
        return F.linear(x, self._base[key]) + change

    def _attention(self, x: Tensor, layer: int) -> Tensor:
        q, k, v = (
            self._linear(x, layer, f"self_attn.{part}_proj")
            .view(len(x), -1, HEADS, WIDTH // HEADS)
            .transpose(1, 2)
            for part in "qkv"
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(out.transpose(1, 2).reshape(x.shape), layer, "self_attn.out_proj")

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids, (batch, length, WIDTH); every id must be trained."""
        places = torch.tensor([self.place[token] for token in ids.flatten().tolist()])
        return self.rows[places].view(*ids.shape, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the output before the final norm, which SD3 reads, (batch, length, WIDTH)."""
        x = self.embedded(ids) + self._positions[: ids.shape[1]]
        for layer in ACTIVE:
            normed = F.layer_norm(x, (WIDTH,))
            x = x + self._attention(normed, layer)
            h = self._linear(F.layer_norm(x, (WIDTH,)), layer, "mlp.fc1")
            x = x + self._linear(h * torch.sigmoid(1.702 * h), layer, "mlp.fc2")
        return x

    def last_hidden_state(self, ids: Tensor) -> Tensor:
        """Return the last layer's output after the final norm, which SD1.5 reads.

        The layers after the last of ``ACTIVE`` pass their input on, so this is the final norm of
        the output that SD3 reads, (batch, length, WIDTH).
        """
        return final_norm(self(ids))

    def trained(self) -> dict[str, Tensor]:
        """Return the trained state: token ids, their embeddings and the low-rank factors."""
        state = {"tokens": torch.tensor(self.tokens), "rows": self.rows.detach()}
        for key in self.down:
            state[f"down.{key}"] = self.down[key].detach()
            state[f"up.{key}"] = self.up[key].detach()
        return {key: value.clone() for key, value in state.items()}

    @classmethod
    def of(cls, trained: dict[str, Tensor]) -> TextEncoder:
        """Return the encoder with a state from ``trained``."""
        encoder = cls(trained["tokens"].tolist())
        with torch.no_grad():
            encoder.rows.copy_(trained["rows"])
            for key in encoder.down:
                encoder.down[key].copy_(trained[f"down.{key}"])
                encoder.up[key].copy_(trained[f"up.{key}"])
        return encoder.eval().requires_grad_(False)


def final_norm(x: Tensor) -> Tensor:
    """Apply the final norm to the output, for SD1.5 and for the pooled vector."""
    return F.layer_norm(x, (WIDTH,))


def end_positions(ids: Tensor) -> Tensor:
    """Return the position of the first end token of each row, (batch,)."""
    return (ids == END).float().argmax(1)


def at_end(x: Tensor, ids: Tensor) -> Tensor:
    """Return the vectors at the end tokens, (batch, WIDTH)."""
    return x[torch.arange(len(x)), end_positions(ids)]


def assembled(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the whole encoder's state in fp16, with keys that begin with ``text_model.``."""
    state = dict(seeded_weights())
    table = state["text_model.embeddings.token_embedding.weight"].clone()
    table[trained["tokens"]] = trained["rows"].float()
    state["text_model.embeddings.token_embedding.weight"] = table
    for layer in ACTIVE:
        for name in MATRICES:
            key = f"{layer}.{name}".replace(".", "_")
            change = trained[f"up.{key}"].float() @ trained[f"down.{key}"].float()
            full = f"text_model.encoder.layers.{layer}.{name}.weight"
            state[full] = state[full] + change
    return {key: value.half() for key, value in state.items()}


def cosine_between(vectors: Tensor) -> float:
    """Return the mean cosine similarity between different rows, (count, width)."""
    unit = F.normalize(vectors, dim=1)
    gram = unit @ unit.T
    count = len(gram)
    return ((gram.sum() - gram.trace()) / (count * (count - 1))).item()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a learning rate that warms up over 40 steps and falls along a half cosine."""
    return (
        peak
        * min(1, (step + 1) / 40)
        * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
    )
