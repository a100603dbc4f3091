"""LoRAs of several families for a fusion."""

import comfy.lora
import comfy.ops
import comfy.sd
import torch
from concept_encoders import clip_of
from concept_inputs import tiny_sdxl_clip
from gated_loras import relative
from guidance_case import ksample
from pack.nodes.bridge.conditioning import encode_prompt
from tiny import tiny, tiny_clip, tiny_latent

GENERATOR = 4


def factor(*shape, seed=0, scale=0.05):
    return torch.randn(shape, generator=torch.Generator().manual_seed(GENERATOR + seed)) * scale


def encoder_of(name):
    if name == "sdxl":
        return tiny_sdxl_clip()
    return clip_of(name.removesuffix("_read")) if name.endswith("_read") else tiny_clip()


def assert_stock_loader_agrees(name, out):
    """Check that the fused LoRA in the stock loader gives the same pictures as the MODEL output."""
    model, clip, lora = out.result[:3]
    encoder = encoder_of(name)
    stock_model, stock_clip = comfy.sd.load_lora_for_models(
        tiny(name), encoder, dict(lora), 1.0, 1.0
    )
    latent = torch.zeros_like(tiny_latent(tiny(name), 8, 8)["samples"])
    both = []
    for one, text_encoder in ((model, clip), (stock_model, stock_clip)):
        prompt = encode_prompt(text_encoder, "a red boat")
        both.append(ksample(one, prompt, prompt, latent))
    assert relative(*both) < 1e-5
    names = comfy.lora.model_lora_keys_unet(tiny(name).model, {})
    comfy.lora.model_lora_keys_clip(encoder.cond_stage_model, names)
    assert {key.rpartition(".lora")[0] for key in lora if ".lora" in key} <= set(names)
