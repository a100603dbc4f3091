"""Random LoRAs for tiny models, and models patched with them."""

import comfy.hooks
import comfy.lora
import comfy.samplers
import torch
from pack.lora_ops import LowRank
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import lora_state
from tiny import tiny_cond, tiny_latent

UNETS = {"sd15", "sd21_v", "sdxl", "sdxl_v"}
RANK = 4


def random_factors(site, seed, rank=RANK) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    fan_in = torch.Size(site.shape[1:]).numel()
    down = torch.randn(rank, *site.shape[1:], generator=generator) / fan_in**0.5
    up = torch.randn(site.shape[0], rank, *[1] * (len(site.shape) - 2), generator=generator)
    return LowRank(down, up * 0.3, alpha=2.0)


def random_lora(model, targets="attention", seed=0) -> dict:
    sites = training_sites(model, targets)
    layers = {name: random_factors(site, seed + i) for i, (name, site) in enumerate(sites.items())}
    return lora_state(layers, {})


def patched(model, lora):
    """Return the model with the file as core's LoraLoader applies it."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    clone = model.clone()
    loaded = comfy.lora.load_lora(dict(lora), names)
    assert len(clone.add_patches(loaded, 1.0)) == len(loaded)
    return clone


def inputs(model, rows=1):
    latent = training_latent(model, tiny_latent(model, 8, 8, batch=rows)["samples"])
    cond = training_cond(model, tiny_cond(model, 12), latent[0])
    return latent, [cond] * rows


def prediction(model, rows=1, gates=None, row_gates=None, only=slice(None)):
    """Return what the model predicts for the rows of ``inputs``, or for some of them."""
    latent, conds = inputs(model, rows)
    latent, conds = latent[only], conds[only]
    with open_denoiser(model) as denoiser, torch.no_grad():
        sigma = denoiser.sigma_at(torch.full((len(conds),), 0.6))
        if gates is None:
            return denoiser.denoise(latent, sigma, conds)
        with gates.attached(), gates.gated(row_gates):
            return denoiser.denoise(latent, sigma, conds)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model.model.modules())


def layer_file(base, down, up, alpha=None, **more) -> dict:
    state = {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
    if alpha is not None:
        state[f"{base}.alpha"] = torch.tensor(alpha)
    return state | {f"{base}.{key}": value for key, value in more.items()}


def gaussian(*shape, seed=0, spread=0.1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


KOHYA_CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


PROJ_IN = "lora_unet_down_blocks_0_attentions_0_proj_in"


FLUX_QUERY = "transformer.transformer_blocks.0.attn.to_q"


FLUX_SINGLE = "transformer.single_transformer_blocks.1.attn"


FILES = {
    "3x3 convolution": (
        "sd15",
        lambda: layer_file(KOHYA_CONV, gaussian(4, 320, 3, 3), gaussian(320, 4, 1, 1, seed=1), 2.0),
    ),
    "3x3 convolution in Tucker form": (
        "sd15",
        lambda: layer_file(
            KOHYA_CONV,
            gaussian(4, 320, 1, 1),
            gaussian(320, 4, 1, 1, seed=1),
            2.0,
            **{"lora_mid.weight": gaussian(4, 4, 3, 3, seed=2, spread=1.0)},
        ),
    ),
    "1x1 convolution": (
        "sd15",
        lambda: layer_file(PROJ_IN, gaussian(4, 320, 1, 1), gaussian(320, 4, 1, 1, seed=1)),
    ),
    "linear layer, saved as a convolution": (
        "sdxl",
        lambda: layer_file(
            PROJ_IN.replace("attentions_0", "attentions_2"),
            gaussian(4, 320, 1, 1),
            gaussian(320, 4, 1, 1, seed=1),
        ),
    ),
    "1x1 convolution, saved as linear": (
        "sd15",
        lambda: layer_file(PROJ_IN, gaussian(4, 320), gaussian(320, 4, seed=1)),
    ),
    "query slice of a fused layer": (
        "flux",
        lambda: layer_file(FLUX_QUERY, gaussian(4, 128), gaussian(128, 4, seed=1)),
    ),
    "three slices of one fused layer": (
        "flux",
        lambda: {
            key: value
            for i, part in enumerate(("to_q", "to_k", "to_v"))
            for key, value in layer_file(
                f"{FLUX_SINGLE}.{part}", gaussian(4, 128, seed=i), gaussian(128, 4, seed=9 + i), 3.0
            ).items()
        },
    ),
    "swapped scale and shift": (
        "sd3",
        lambda: layer_file(
            "transformer.norm_out.linear", gaussian(4, 128), gaussian(256, 4, seed=1)
        ),
    ),
}
