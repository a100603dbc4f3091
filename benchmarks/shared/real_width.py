"""Build SD1.5 and SDXL at their real widths with random weights, and random training examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfyui.toy_base import toy_checkpoint
from pack.nodes.text.training_cond import training_cond
from pack.training import Example

TOY_BASE = "toy base"
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
}
NETWORKS = {
    "SD1.5": {
        **_UNET,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
    },
    "SDXL": {
        **_UNET,
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}


@dataclass(frozen=True)
class Case:
    """A base and a training step on it.

    Args:
        base: ``TOY_BASE`` or a key of ``NETWORKS``.
        dtype: Name of the weights' dtype in torch.
        size: Side of the latents.
        rows: Number of examples in a step.
        checkpointing: Whether a step recomputes the blocks' activations.
    """

    base: str
    dtype: str
    size: int
    rows: int
    checkpointing: bool

    @property
    def label(self) -> str:
        """Return the case's name in tables."""
        return f"{self.base}, {self.dtype}, {8 * self.size} px, batch {self.rows}"


def load_base(case: Case) -> Any:
    """Return the case's base, loaded by ComfyUI, with random weights unless it is the toy base."""
    dtype = getattr(torch, case.dtype)
    if case.base == TOY_BASE:
        return comfy.sd.load_diffusion_model(str(toy_checkpoint()), model_options={"dtype": dtype})
    with torch.device("meta"):
        layout = UNetModel(
            **NETWORKS[case.base], operations=comfy.ops.disable_weight_init, dtype=dtype
        )
    state = random_state(layout, dtype)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})


def random_state(
    layout: torch.nn.Module, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return random weights for a network on the meta device; norm scales are 1 and biases 0."""
    state = {}
    for key, value in layout.state_dict().items():
        if value.ndim < 2:
            fill = 0.0 if key.endswith("bias") else 1.0
            state[key] = torch.full(value.shape, fill, dtype=dtype)
        else:
            spread = 1 / math.sqrt(math.prod(value.shape[1:]))
            state[key] = torch.empty(value.shape, dtype=dtype).uniform_(-spread, spread)
    return state


def random_examples(model: Any, case: Case) -> list[Example]:
    """Return examples of random latents and captions with the widths that the base expects."""
    width = model.model.model_config.unet_config["context_dim"]
    extras = {"pooled_output": torch.randn(1, 1280)} if case.base == "SDXL" else {}
    found = []
    for _ in range(case.rows):
        channels = model.model.latent_format.latent_channels
        latent = torch.randn(channels, case.size, case.size)
        caption = [[torch.randn(1, 77, width), extras]]
        found.append(Example(latent, training_cond(model, caption, latent)))
    return found
