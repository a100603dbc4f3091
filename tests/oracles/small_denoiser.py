"""A denoiser of one or two linear layers that predicts eps; no ComfyUI."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from pack.training import Example, Site
from pack.training.words import Words
from torch import Tensor, nn

WIDTH = 8


class SmallDenoiser:
    """Fulfils ``training.Denoiser``; a cond is a bias vector added to the input."""

    def __init__(self, layers: int = 1, width: int = WIDTH, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.device = torch.device("cpu")
        self.calls: list[int] = []
        self.seen: list[Tensor] = []
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.layers.requires_grad_(False)
        for layer in self.layers:
            layer.weight.copy_(torch.randn(width, width, generator=generator) * 0.3)

    @property
    def sites(self) -> dict[str, Site]:
        return {
            f"lora_unet_layer_{n}": Site(layer, tuple(layer.weight.shape))
            for n, layer in enumerate(self.layers)
        }

    def sigma_at(self, share: Tensor) -> Tensor:
        return 0.1 + 2.0 * share

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return latent + sigma.view(-1, 1) * noise

    def output_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        return -sigma.view(-1, 1)

    def pack_key(self, example: Example) -> Hashable:
        return tuple(example.cond.shape)

    def denoise(self, x: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        self.calls.append(len(x))
        self.seen.append(x.detach().clone())
        hidden = x / (sigma.view(-1, 1) ** 2 + 1).sqrt() + torch.stack(list(conds))
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden if number == 0 else hidden.tanh())
        return x - sigma.view(-1, 1) * hidden


def example(seed: int, width: int = WIDTH, cond: float = 0.0) -> Example:
    generator = torch.Generator().manual_seed(seed)
    return Example(torch.randn(width, generator=generator), torch.full((width,), cond))


class Caption:
    """A cond that is made anew each step of the learnt word: one of its layers."""

    shape = torch.Size([WIDTH])

    def __init__(self, layer: int = 0):
        self.layer = layer

    def __call__(self, learnt: Mapping[str, Tensor]) -> Tensor:
        return learnt["text"][self.layer]


def said(seed: int, layer: int = 0) -> Example:
    """An example whose caption holds the learnt word."""
    return Example(example(seed).latent, Caption(layer))


def words(**settings: Any) -> Words:
    """Two rows of one learnt word."""
    start = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(9))
    return Words({"text": 0.1 * start}, norms={"text": 0.5}, **settings)
