"""The toy base's denoiser: SD1.5's UNet at one level, key for key as ComfyUI's, laid out for speed.

Activations stay token-major (batch, height, width, channel) in memory, so that convolutions run
channels-last and attention needs no copies. ComfyUI's own class gives the same output.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 320
HEADS = 8
CONTEXT = 768


def timestep_features(t: Tensor) -> Tensor:
    """Cosines then sines of timesteps, (batch,) to (batch, 320)."""
    half = WIDTH // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / half)
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions, the timestep added between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, WIDTH, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, WIDTH),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        same = channels == WIDTH
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, WIDTH, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None].to(x.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Attention of tokens to a context, 8 heads of 40."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            y = y.view(len(y), -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            return y.reshape(-1, y.shape[2], WIDTH // HEADS)  # (batch * head, token, channel)

        # Plain products: the fused attention's backward is five times slower on a CPU.
        q, k, v = heads(self.to_q(x)), heads(self.to_k(context)), heads(self.to_v(context))
        weights = torch.softmax(torch.bmm(q * (WIDTH // HEADS) ** -0.5, k.mT), dim=-1)
        out = torch.bmm(weights, v).view(len(x), HEADS, -1, WIDTH // HEADS)
        return self.to_out(out.transpose(1, 2).reshape(x.shape))


class GatedLinear(nn.Module):
    """A projection whose second half gates the first by GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The gated two-layer net of a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(), nn.Dropout(0.0), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(CONTEXT), FeedForward()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """One transformer block between 1 x 1 projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, WIDTH, eps=1e-6)
        self.proj_in = nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([Block()])
        self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = F.linear(tokens, self.proj_in.weight[:, :, 0, 0], self.proj_in.bias)
        tokens = self.transformer_blocks[0](tokens, context)
        tokens = F.linear(tokens, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)


class TinyUNet(nn.Module):
    """25.8 M parameters; predicts the noise in latents (batch, 4, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH)
        )
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(4, WIDTH, 3, padding=1)]),
                nn.ModuleList([ResBlock(WIDTH), SpatialTransformer()]),
            ]
        )
        self.middle_block = nn.ModuleList([ResBlock(WIDTH), SpatialTransformer(), ResBlock(WIDTH)])
        self.output_blocks = nn.ModuleList(
            [nn.ModuleList([ResBlock(2 * WIDTH), SpatialTransformer()]) for _ in range(2)]
        )
        self.out = nn.Sequential(
            nn.GroupNorm(32, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1)
        )
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.out_layers[3].weight)
            elif isinstance(module, SpatialTransformer):
                nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(self.out[2].weight)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        emb = self.time_embed(timestep_features(t).to(context.dtype))
        h = self.input_blocks[0][0](x)
        skips = [h]
        for layer in self.input_blocks[1]:
            h = layer(h, emb, context)
        skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, context)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, emb, context)
        return self.out(h)
