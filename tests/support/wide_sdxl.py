"""Build SDXL at its real widths."""

import comfy.model_base
import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher

SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}


def real_width_sdxl(device: str = "meta") -> ModelPatcher:
    """Return the real SDXL network, by default without memory for its weights."""
    config = comfy.supported_models.SDXL({**SDXL, "dtype": torch.float16})
    base = comfy.model_base.SDXL(config, device=torch.device(device))
    return ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
