"""Base B's denoiser: a small SD3 with joint attention and the keys of ComfyUI's ``MMDiT``.

It has patches of 2 x 2, RMS norms of queries and keys, and five blocks of width 320. The text
stream may be shorter than ComfyUI's 77 tokens: a padding token can stand for several equal ones and
then counts that many times in the attention (``ContextRows``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTH = 5
HEAD = 64
WIDTH = DEPTH * HEAD
CHANNELS, PATCH, GRID = 16, 2, 32
CONTEXT, POOLED = 768, 768  # CLIP-L's share of SD3's 4,096 and 2,048 numbers; the rest is zero
CONTEXT_IN_FILE, POOLED_IN_FILE = 4096, 2048


@dataclass(frozen=True)
class ContextRows:
    """Encoded prompts of a batch, the input of the text stream.

    Attributes:
        tokens: Token embeddings, (batch, length, CONTEXT).
        pooled: Pooled outputs, (batch, POOLED).
        log_counts: Logarithm of the number of ComfyUI's 77 tokens for which each token stands,
            (batch, length); -inf at places without a token.
    """

    tokens: Tensor
    pooled: Tensor
    log_counts: Tensor

    def to(self, device: str) -> ContextRows:
        """Return the same prompts on another device."""
        return ContextRows(
            self.tokens.to(device), self.pooled.to(device), self.log_counts.to(device)
        )


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class _Attention(nn.Module):
    def __init__(self, pre_only: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.ln_q, self.ln_k = _RMSNorm(HEAD), _RMSNorm(HEAD)
        if not pre_only:
            self.proj = nn.Linear(WIDTH, WIDTH)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, (WIDTH,), eps=1e-6), 1 + scale)


class _Block(nn.Module):
    """A stream of a joint block."""

    def __init__(self, pre_only: bool) -> None:
        super().__init__()
        self.attn = _Attention(pre_only)
        self.pre_only = pre_only
        if not pre_only:
            self.mlp = _Mlp()
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(WIDTH, (2 if pre_only else 6) * WIDTH)
        )

    def before(self, x: Tensor, c: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return queries, keys and values (batch, heads, length, HEAD), and the modulation."""
        parts = self.adaLN_modulation(c)[:, None].chunk(2 if self.pre_only else 6, -1)
        y = _normed(x, parts[0], parts[1])
        q, k, v = self.attn.qkv(y).view(*x.shape[:2], 3, DEPTH, HEAD).permute(2, 0, 3, 1, 4)
        return [self.attn.ln_q(q), self.attn.ln_k(k), v], parts

    def after(self, attended: Tensor, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the stream after the attention's output projection and the MLP."""
        x = torch.addcmul(x, parts[2], self.attn.proj(attended))
        return torch.addcmul(x, parts[5], self.mlp(_normed(x, parts[3], parts[4])))


class _JointBlock(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.context_block, self.x_block = _Block(pre_only=last), _Block(pre_only=False)

    def forward(
        self, context: Tensor, x: Tensor, c: Tensor, bias: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        of_context, context_parts = self.context_block.before(context, c)
        of_x, x_parts = self.x_block.before(x, c)
        q, k, v = (torch.cat(pair, 2) for pair in zip(of_context, of_x, strict=True))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.transpose(1, 2).flatten(2)
        length = context.shape[1]
        x = self.x_block.after(out[:, length:], x, x_parts)
        if self.context_block.pre_only:
            return None, x
        return self.context_block.after(out[:, :length], context, context_parts), x


class _TwoLinear(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def timestep_embedding(t: Tensor) -> Tensor:
    """Return ComfyUI's sinusoidal embedding of timesteps in 0..1000, (batch, 256)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def position_embedding() -> Tensor:
    """Return SD3's fixed sine and cosine table, (1, GRID * GRID, WIDTH)."""
    omega = 1 / 10000 ** (torch.arange(WIDTH // 4).double() / (WIDTH // 4))
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    halves = []
    for grid in (columns, rows):
        angles = grid.flatten()[:, None].double() * omega
        halves.append(torch.cat([angles.sin(), angles.cos()], 1))
    return torch.cat(halves, 1)[None].float()


class MMDiT(nn.Module):
    """The denoiser, which predicts the velocity ``noise - x0``."""

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.register_buffer("pos_embed", position_embedding(), persistent=False)
        self.t_embedder, self.y_embedder = _TwoLinear(256), _TwoLinear(POOLED)
        self.context_embedder = nn.Linear(CONTEXT, WIDTH)
        self.joint_blocks = nn.ModuleList(_JointBlock(n == DEPTH - 1) for n in range(DEPTH))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(WIDTH, PATCH * PATCH * CHANNELS)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        for name, parameter in self.named_parameters():
            if "adaLN" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(parameter)

    def _positions(self, height: int, width: int) -> Tensor:
        top, left = (GRID - height) // 2, (GRID - width) // 2
        table = self.pos_embed.view(GRID, GRID, WIDTH)
        return table[top : top + height, left : left + width].reshape(1, height * width, WIDTH)

    def forward(self, x: Tensor, t: Tensor, prompts: ContextRows) -> Tensor:
        """Return the velocity.

        Args:
            x: Noised latents, (batch, CHANNELS, height, width).
            t: Noise levels in 0..1, (batch,).
            prompts: Encoded prompts.
        """
        h = self.x_embedder.proj(x)
        height, width = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + self._positions(height, width)
        c = self.t_embedder(timestep_embedding(t * 1000)) + self.y_embedder(prompts.pooled)
        context = self.context_embedder(prompts.tokens)
        image = prompts.log_counts.new_zeros(len(x), height * width)
        bias = torch.cat([prompts.log_counts, image], 1)[:, None, None]
        for block in self.joint_blocks:
            context, h = block(context, h, c, bias)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        h = self.final_layer.linear(_normed(h, shift, scale))
        h = h.view(len(x), height, width, PATCH, PATCH, CHANNELS).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(len(x), CHANNELS, height * PATCH, width * PATCH)


def checkpoint_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a trained state with the keys and shapes of an SD3 file, including ``pos_embed``."""
    out = dict(state)
    weight = out["context_embedder.weight"]
    out["context_embedder.weight"] = F.pad(weight, (0, CONTEXT_IN_FILE - CONTEXT))
    weight = out["y_embedder.mlp.0.weight"]
    out["y_embedder.mlp.0.weight"] = F.pad(weight, (0, POOLED_IN_FILE - POOLED))
    out["pos_embed"] = position_embedding()
    return out
