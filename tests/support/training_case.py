"""Networks and the configuration of a short training."""

import torch
from pack.lora_ops import Plain
from pack.training.adapters import new_adapter
from pack.training.config import TrainingConfig
from tiny import TINY_NAMES

RANK = 4
# sdxl_v has the same network as sdxl and differs only in the loss.
NETWORKS = tuple(name for name in TINY_NAMES if name != "sdxl_v")

CONFIG = TrainingConfig(steps=6, rank=RANK, learning_rate=3e-2, seed=1, weight_decay=0.0)


def warm_adapter(sites, device, seed=0):
    """Return a plain adapter whose ``up`` is not zero, so that every factor gets gradient."""
    adapter = new_adapter("lora", Plain(), sites, RANK, seed, device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parts in adapter.parts.values():
            parts["up"].copy_(torch.randn(parts["up"].shape, generator=generator) * 0.1)
    return adapter
