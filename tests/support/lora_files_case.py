"""Save, load and apply LoRAs."""

import comfy.sample
import comfy.sd
import pytest
import torch
from pack.lora_ops import LowRank
from pack.nodes.bridge.families import identify
from pack.nodes.lora.nodes import ApplyLora, SaveLora
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import lora_state
from tiny import tiny_cond, tiny_latent

RANK = 4


@pytest.fixture
def picture():
    return torch.rand(1, 96, 128, 3, generator=torch.Generator().manual_seed(0))


def random_lora(shapes, metadata=None, seed=0):
    """Return a LoRA that changes every layer of ``shapes`` clearly."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, shape in shapes.items():
        down = torch.randn(RANK, *shape[1:], generator=generator) / shape[1] ** 0.5
        up = torch.randn(shape[0], RANK, generator=generator) * 0.05
        layers[name] = LowRank(down, up, alpha=2.0)
    return lora_state(layers, metadata or {})


def unet_lora(model, seed=0):
    shapes = {name: site.shape for name, site in training_sites(model, "attention").items()}
    return random_lora(shapes, {"modelspec.architecture": identify(model).architecture}, seed)


def sampled(model):
    latent = tiny_latent(model)["samples"]
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    noise = comfy.sample.prepare_noise(latent, 7)
    conds = (tiny_cond(model, seed=1), tiny_cond(model, seed=2))
    return comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "simple", *conds, latent, disable_pbar=True, seed=7
    )


def save(lora, filename="my_style", precision="fp32", **more):
    (name,) = SaveLora.execute(lora, filename, precision, **more).result
    return name


def apply(model, lora, strength=0.7, clip=None, strength_clip=0.6):
    return ApplyLora.execute(model, lora, strength, strength_clip, clip=clip).result


def released_pair_keys(lora):
    """Return a kohya LoRA under the keys of the released Pair Customization code, without alphas."""
    dotted = {"to_out_0": "to_out.0", "to_q": "to_q", "to_k": "to_k", "to_v": "to_v"}
    released = {}
    for key, tensor in lora.items():
        layer, _, part = key.partition(".lora_")
        if not part:
            continue
        path, _, ending = layer.removeprefix("lora_unet_").partition("_to_")
        path = path.replace("transformer_blocks", "transformerblocks")
        for word in ("down_blocks", "up_blocks", "mid_block"):
            path = path.replace(word, word.replace("_", ""))
        path = path.replace("_", ".").replace("transformerblocks", "transformer_blocks")
        for word in ("down_blocks", "up_blocks", "mid_block"):
            path = path.replace(word.replace("_", ""), word)
        kind = part.removesuffix(".weight")
        released[f"unet.{path}.{dotted['to_' + ending]}.lora.{kind}.weight"] = tensor
    return released
