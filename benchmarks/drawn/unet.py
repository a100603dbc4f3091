"""Define base A's denoiser, a small UNet in SD1.5's layout with the keys of ComfyUI's ``UNetModel``.

It has two levels of SD1.5's width 320: 12 x 12 without attention and 6 x 6 with attention. Most of a
UNet's weights and arithmetic are in its 3 x 3 convolutions. Only those that carry local detail are
3 x 3 here; the others are 1 x 1 during training, and ``checkpoint_state`` pads them to 3 x 3 kernels
that are zero around their centre, which compute the same.

Activations are channels-last, so that 1 x 1 convolutions and attention are plain matrix products.
The context may be shorter than ComfyUI's 77 tokens: a padding token that represents several
others counts that many times in the attention (``ContextRows``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mmdit import ContextRows

WIDTH, HEADS, CHANNELS, CONTEXT = 320, 8, 4, 768
EMBEDDING = 4 * WIDTH


class Conv(nn.Conv2d):
    """A 1 x 1 or 3 x 3 convolution that keeps the size; 1 x 1 is computed as a matrix product."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size != (1, 1):
            return super().forward(x)
        tokens = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return tokens.permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between them, and a skip connection.

    Args:
        inputs: Number of input channels; there are ``WIDTH`` output channels.
        first: Kernel size of the first convolution, 1 or 3.
        second: Kernel size of the second convolution, 1 or 3.
    """

    def __init__(self, inputs: int, first: int, second: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, inputs), nn.SiLU(), Conv(inputs, WIDTH, first)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING, WIDTH))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, WIDTH), nn.SiLU(), nn.Identity(), Conv(WIDTH, WIDTH, second)
        )
        self.skip_connection = nn.Identity() if inputs == WIDTH else Conv(inputs, WIDTH, 1)

    def forward(self, x: Tensor, emb: Tensor, prompts: ContextRows) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Attention of image tokens to a context, with ``HEADS`` heads of 40 channels."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (
            y.view(len(x), -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
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
    """The gated two-layer network of a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(CONTEXT), FeedForward()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, prompts: ContextRows) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        bias = prompts.log_counts[:, None, None]
        x = x + self.attn2(self.norm2(x), prompts.tokens, bias)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks between 1 x 1 projections, with a skip connection."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, WIDTH, eps=1e-6)
        self.proj_in, self.proj_out = Conv(WIDTH, WIDTH, 1), Conv(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock() for _ in range(depth))

    def forward(self, x: Tensor, emb: Tensor, prompts: ContextRows) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, prompts)
        return x + self.proj_out(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """A convolution with stride 2 that halves the size."""

    def __init__(self) -> None:
        super().__init__()
        self.op = Conv(WIDTH, WIDTH, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor, prompts: ContextRows) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to twice the size, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv(WIDTH, WIDTH, 3)

    def forward(self, x: Tensor, emb: Tensor, prompts: ContextRows) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def timestep_embedding(t: Tensor) -> Tensor:
    """Return ComfyUI's sinusoidal embedding of timesteps in 0..999, (batch, WIDTH)."""
    half = WIDTH // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def _blocks(*layers: list[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(block) for block in layers)


class UNet(nn.Module):
    """Base A's denoiser, which predicts the noise in ``x``."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(WIDTH, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING)
        )
        self.input_blocks = _blocks(
            [Conv(CHANNELS, WIDTH, 3)],
            [ResBlock(WIDTH, 3, 1)],
            [Downsample()],
            [ResBlock(WIDTH, 1, 1), SpatialTransformer(1)],
        )
        self.middle_block = nn.ModuleList(
            [ResBlock(WIDTH, 1, 1), SpatialTransformer(2), ResBlock(WIDTH, 1, 1)]
        )
        self.output_blocks = _blocks(
            [ResBlock(2 * WIDTH, 1, 1), SpatialTransformer(1)],
            [ResBlock(2 * WIDTH, 1, 1), SpatialTransformer(1), Upsample()],
            [ResBlock(2 * WIDTH, 1, 3)],
            [ResBlock(2 * WIDTH, 1, 1)],
        )
        self.out = nn.Sequential(nn.GroupNorm(32, WIDTH), nn.SiLU(), Conv(WIDTH, CHANNELS, 3))
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.out_layers[3].weight)
            elif isinstance(module, SpatialTransformer):
                nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(self.out[2].weight)

    def forward(self, x: Tensor, t: Tensor, prompts: ContextRows) -> Tensor:
        """Return the predicted noise.

        Args:
            x: Noised latents, scaled to variance 1, (batch, CHANNELS, height, width).
            t: Timesteps in 0..999, (batch,).
            prompts: Prompts of the batch.
        """
        emb = self.time_embed(timestep_embedding(t))
        h = self.input_blocks[0][0](x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, emb, prompts)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, prompts)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], 1)
            for layer in block:
                h = layer(h, emb, prompts)
        return self.out(h)


def checkpoint_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a trained state with the shapes of an SD1.5 file: 1 x 1 kernels padded to 3 x 3."""
    out = dict(state)
    for key, value in state.items():
        if key.endswith(("in_layers.2.weight", "out_layers.3.weight")) and value.shape[-1] == 1:
            out[key] = F.pad(value, (1, 1, 1, 1))
    return out
