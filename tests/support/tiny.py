"""Build tiny ComfyUI models with random weights: the real classes, narrow and shallow.

A network is laid out on the meta device from its own class, filled with seeded numbers, and
loaded through ComfyUI's loader, so that detection, model class and sampling settings are those
of a real file. Tests share networks: ``tiny`` returns a new patcher of a shared one. A test that
changes weights must use ``fresh=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache

import comfy.cldm.cldm
import comfy.clip_model
import comfy.controlnet
import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.taesd.taesd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

CLIP_LAYERS = 2
T5_WIDTH = 4096
CLIP_WIDTH = 768  # also the text width of the tiny SD3, Flux and Flux.2: one tiny CLIP serves them

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "use_spatial_transformer": True,
    "transformer_depth_middle": -2,
}
_SD15 = {
    **_UNET,
    "context_dim": 768,
    "num_heads": 8,
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
}
_SD21 = {**_SD15, "context_dim": 1024, "use_linear_in_transformer": True}
_SDXL = {
    **_UNET,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_res_blocks": [6],
    "transformer_depth": [0, 0, 1, 1, 2, 2],  # Segmind Vega's, on a single level
    "transformer_depth_output": [0] * 7,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
_SD3 = {
    "input_size": None,
    "in_channels": 16,
    "out_channels": 16,
    "depth": 2,
    "adm_in_channels": CLIP_WIDTH,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CLIP_WIDTH, "out_features": 128},
    },
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "qk_norm": "rms",
}
_FLUX = {
    "hidden_size": 128,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "context_in_dim": CLIP_WIDTH,
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": CLIP_WIDTH,
    "mlp_ratio": 4.0,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_FLUX2 = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
}
_WAN = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2}

_unet = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
_mmdit = comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper
_flux = comfy.ldm.flux.model.Flux
_wan = comfy.ldm.wan.model.WanModel

_NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict]] = {
    "sd15": (_unet, _SD15),
    "sd21_v": (_unet, _SD21),
    "sdxl": (_unet, _SDXL),
    "sdxl_v": (_unet, _SDXL),
    "sd3": (_mmdit, _SD3),
    "flux": (_flux, _FLUX),
    "flux2": (_flux, _FLUX2),
    "wan21": (_wan, _WAN),
}
# Tensors by which the real loader detects v-prediction; for SD 2.x, the spread of one deep bias.
_MARKERS: dict[str, dict[str, Tensor]] = {
    "sd21_v": {
        "output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1.0, 1.0, 320)
    },
    "sdxl_v": {"v_pred": torch.tensor([])},
}
TINY_NAMES = tuple(_NETWORKS)
# Variants for single tests.
_NETWORKS |= {
    "sd15_inpaint": (_unet, {**_SD15, "in_channels": 9}),
    "sd15_middle": (_unet, {**_SD15, "transformer_depth_middle": 1}),
    # four transformer modules: one down, one in the middle, two up
    "sd15_layers": (
        _unet,
        {**_SD15, "transformer_depth_middle": 1, "transformer_depth_output": [1, 1]},
    ),
    # as wide as the outputs of their own text encoders
    "sd3_read": (
        _mmdit,
        {
            **_SD3,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": T5_WIDTH, "out_features": 128},
            },
        },
    ),
    "flux_read": (_flux, {**_FLUX, "context_in_dim": T5_WIDTH}),
}


def random_state(
    module: nn.Module, seed: int, dtype: torch.dtype, gain: float = 0.7
) -> dict[str, Tensor]:
    """Return seeded weights for a module on the meta device, scaled so that outputs stay moderate.

    Matrices and kernels are N(0, gain^2 / fan_in), norm weights 1, biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in module.state_dict().items():
        if value.ndim < 2:
            fill = 0.0 if key.endswith(("bias", "shift")) else 1.0
            state[key] = torch.full(value.shape, fill, dtype=dtype)
        else:
            spread = gain / math.sqrt(math.prod(value.shape[1:]))
            state[key] = (torch.randn(value.shape, generator=generator) * spread).to(dtype)
    return state


def _state(name: str, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    network, config = _NETWORKS[name]
    with torch.device("meta"):
        layout = network(**config, operations=comfy.ops.disable_weight_init, dtype=dtype)
    return random_state(layout, seed, dtype) | _MARKERS.get(name, {})


def _load(name: str, dtype: torch.dtype, seed: int) -> ModelPatcher:
    state = _state(name, dtype, seed)
    patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
    if patcher is None:
        raise RuntimeError(f"ComfyUI must recognise the tiny model, {name} was not recognised")
    return patcher


_SHARED: dict[tuple[str, torch.dtype, int], ModelPatcher] = {}


def restore_shared() -> None:
    """Unload every model and restore the weights of the shared networks.

    Weights may still be patched by patchers that no longer exist.
    """
    comfy.model_management.unload_all_models()
    for patcher in _SHARED.values():
        patcher.unpatch_model()


def tiny(
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    fresh: bool = False,
    inference: bool = False,
) -> ModelPatcher:
    """Return a patcher of a tiny model.

    Args:
        name: Key of ``_NETWORKS``, such as one of ``TINY_NAMES``.
        dtype: Dtype of the stored weights.
        seed: Seed of the weights.
        fresh: Whether the network is not shared, for tests that change weights.
        inference: Whether the weights are inference tensors, as loader nodes make them; implies
            ``fresh``.
    """
    if inference:
        with torch.inference_mode():
            return _load(name, dtype, seed)
    if fresh:
        return _load(name, dtype, seed)
    network = (name, dtype, seed)
    if network not in _SHARED:
        _SHARED[network] = _load(*network)
    return _SHARED[network].clone()


def tiny_scaled_fp8(name: str, suffix: str, *, seed: int = 0) -> ModelPatcher:
    """Return a new tiny model whose layers ``…suffix`` are fp8 with one scale each.

    It is made under inference mode, as by loader nodes.
    """
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    with torch.inference_mode():
        state = _state(name, torch.float32, seed)
        for layer in [key[: -len(".weight")] for key in state if key.endswith(f"{suffix}.weight")]:
            weight = state[f"{layer}.weight"]
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            state[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            state[f"{layer}.weight_scale"] = scale
            state[f"{layer}.comfy_quant"] = note.clone()
        return comfy.sd.load_diffusion_model_state_dict(state)


def tiny_cond(model: ModelPatcher, tokens: int = 77, batch: int = 1, seed: int = 0) -> list:
    """Return a CONDITIONING of random text features that have the model's widths."""
    generator = torch.Generator().manual_seed(1000 + seed)
    config = model.model.model_config.unet_config
    width = config.get("context_dim") or config.get("context_in_dim")
    pooled_width = config.get("vec_in_dim")
    if "joint_blocks.0.x_block.attn.qkv.weight" in model.model.diffusion_model.state_dict():
        width, pooled_width = CLIP_WIDTH, CLIP_WIDTH
    elif config.get("image_model") == "wan2.1":
        width = 4096
    elif config.get("adm_in_channels") == 2816:
        pooled_width = 1280
    extras = {}
    context = torch.randn(batch, tokens, width, generator=generator)  # (batch, token, channel)
    if pooled_width is not None:
        extras["pooled_output"] = torch.randn(batch, pooled_width, generator=generator)
    return [[context, extras]]


def tiny_latent(
    model: ModelPatcher, height: int = 16, width: int = 16, batch: int = 1, seed: int = 0
) -> dict:
    """Return a LATENT of random numbers, ``(batch, channel, height, width)``; Wan's is 5-D."""
    generator = torch.Generator().manual_seed(2000 + seed)
    latent_format = model.model.latent_format
    time = (1,) * (latent_format.latent_dimensions - 2)
    shape = (batch, latent_format.latent_channels, *time, height, width)
    return {"samples": torch.randn(shape, generator=generator)}


def weights_hash(model: ModelPatcher) -> str:
    """Return a digest of the present weights and buffers of the patcher's network."""
    digest = hashlib.sha256()
    for key, value in sorted(model.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def tiny_vae(latent_channels: int = 4, seed: int = 0) -> comfy.sd.VAE:
    """Return a VAE of ComfyUI's TAESD class with random weights (4 or 16 latent channels)."""
    with torch.device("meta"):
        layout = comfy.taesd.taesd.TAESD(latent_channels=latent_channels)
    return comfy.sd.VAE(sd=random_state(layout, seed, torch.float32, gain=1.1))


@cache
def tiny_clip(seed: int = 0) -> comfy.sd.CLIP:
    """Return a CLIP-L of two layers with random weights, so that prompts are encoded quickly."""
    config = {
        "num_hidden_layers": CLIP_LAYERS,
        "hidden_size": CLIP_WIDTH,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "projection_dim": CLIP_WIDTH,
    }
    with torch.device("meta"):
        layout = comfy.clip_model.CLIPTextModel(
            config, torch.float32, None, comfy.ops.disable_weight_init
        )
    return comfy.sd.load_text_encoder_state_dicts(
        [random_state(layout, seed, torch.float32)],
        model_options={"model_config": {"num_hidden_layers": CLIP_LAYERS}},
    )


def tiny_controlnet() -> comfy.controlnet.ControlNet:
    """Return a ControlNet of SD1.5's class that fits the tiny UNet, with random weights."""
    config = {
        "image_size": 32,
        "in_channels": 4,
        "hint_channels": 3,
        "model_channels": 320,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "num_heads": 8,
        "use_spatial_transformer": True,
        "transformer_depth": [1],
        "transformer_depth_middle": -1,
        "context_dim": 768,
        "dtype": torch.float32,
        "operations": comfy.ops.disable_weight_init,
    }
    with torch.device("meta"):
        model = comfy.cldm.cldm.ControlNet(**config)
    model.to_empty(device="cpu")
    model.load_state_dict(random_state(model, 5, torch.float32))
    return comfy.controlnet.ControlNet(model)
