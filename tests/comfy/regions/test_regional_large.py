"""Regions on large canvases, and where the weights don't fit into the device's memory."""

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from gated_loras import hook_count, patched, random_lora, relative
from pack.lora_ops import Box, Region
from regional_case import (
    EXACT,
    LEFT,
    RIGHT,
    cond,
    ksample,
    latent_of,
    lora_of,
    region_prompts,
    regional,
)
from tiny import random_state, tiny, weights_hash

NARROW = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 0, 0, 1, 1],
    "transformer_depth_middle": -1,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "num_heads": 8,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "dtype": torch.float32,
}


def narrow():
    """Return a UNet of SD1.5's classes with three levels and a tenth of the width."""
    config = comfy.supported_models.SD15(dict(NARROW))
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device="cpu")
    model.diffusion_model.load_state_dict(random_state(model.diffusion_model, 0, torch.float32))
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, device, device)


def test_six_regions_with_six_loras_on_a_canvas_of_1024_x_2048():
    """In the first text layer a token of one region is as with its prompt and LoRA everywhere."""
    model = narrow()
    boxes = [Box(i / 8, 0.25 * (i % 2), (i + 1) / 8, 1.0) for i in range(6)]
    regions = [Region(f"{i}", box) for i, box in enumerate(boxes)]
    loras = [strong(random_lora(model, seed=1000 * i)) for i in range(6)]
    prompts = [(f"{i}", cond("sd15", i + 2), None, {"lora": loras[i]}) for i in range(6)]
    latent = torch.zeros(1, 4, 128, 256)
    plain, first = text_layer(model, latent)
    found, mixed = text_layer(
        regional(model, regions, region_prompts(*prompts), isolate=True), latent
    )
    assert bool(found.isfinite().all())
    assert relative(found, plain) > 1e-3
    rows, columns = mixed.shape[:2]
    outside = torch.ones(rows, columns, dtype=torch.bool)
    for box in boxes:
        top, left, right = (
            round(z) for z in (box.top * rows, box.left * columns, box.right * columns)
        )
        outside[top:, left:right] = False
    assert relative(mixed[outside], first[outside]) < EXACT
    assert relative(mixed[~outside], first[~outside]) > 1e-2
    alone = region_prompts(("all", cond("sd15", 5), None, {"lora": loras[3]}))
    whole = [Region("all", Box(0, 0, 1, 1))]
    _, fourth = text_layer(regional(model, whole, alone, isolate=True), latent)
    held = slice(rows // 4, rows), slice(3 * columns // 8, columns // 2)
    assert relative(mixed[held], fourth[held]) < EXACT
    assert hook_count(model) == 0


def strong(lora):
    return {key: value * 4 if "lora_up" in key else value for key, value in lora.items()}


def text_layer(model, latent):
    """Return a latent after one step, and the tokens behind the first transformer's block."""
    block = model.model.diffusion_model.input_blocks[3][1].transformer_blocks[0]
    seen = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        sampled = ksample(model, cond("sd15"), [], latent, cfg=1.0, steps=1)
    finally:
        handle.remove()
    return sampled, seen[0][0].unflatten(0, (64, 128))


@pytest.mark.parametrize("name", ["sd15", "sd3", "wan21"])
def test_offloaded_weights_give_what_loaded_ones_do(name, monkeypatch):
    """Every layer is cast on each call, LoRAs of the whole model and of the regions too."""
    before = weights_hash(tiny(name))
    upstream = patched(tiny(name), random_lora(tiny(name), seed=50))
    prompts = region_prompts(
        ("left", cond(name, 2), None, {"lora": lora_of(name, 1)}),
        ("right", cond(name, 3), cond(name, 4), {"lora": lora_of(name, 2)}),
    )
    inputs = cond(name), cond(name, 1), latent_of(name)
    wanted = ksample(regional(upstream, [LEFT, RIGHT], prompts), *inputs)
    comfy.model_management.unload_all_models()
    tiny(name).unpatch_model()
    offloaded = []
    load = comfy.model_patcher.ModelPatcher.load

    def little(self, device_to=None, lowvram_model_memory=0, **options):
        load(self, device_to, lowvram_model_memory=1, **{**options, "full_load": False})
        offloaded.append(self.model.model_lowvram)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", little)
    model = regional(upstream, [LEFT, RIGHT], prompts)
    found = ksample(model, *inputs)
    assert offloaded
    assert all(offloaded)
    assert relative(found, wanted) < EXACT
    assert hook_count(model) == 0
    comfy.model_management.unload_all_models()
    assert weights_hash(tiny(name)) == before
