"""Families that can't be made tiny, at their real widths with the fewest layers: a step each."""

import gc

import comfy.ldm.lumina.model
import comfy.ldm.qwen_image.model
import comfy.ops
import comfy.sd
import pytest
import torch
from gated_loras import hook_count, patched
from pack.nodes.bridge.families import identify
from pack.nodes.lora.layers import lora_layers
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training import Example, Gate, GatedAdapters, TrainingConfig, lora_state, train
from pack.training.recipes import Single
from tiny import random_state

_QWEN = {"num_layers": 1}
_Z_IMAGE = {
    "in_channels": 16,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 2,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "qk_norm": True,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}
_MODELS = {
    "Qwen-Image": (comfy.ldm.qwen_image.model.QwenImageTransformer2DModel, _QWEN, 3584),
    "Z-Image": (comfy.ldm.lumina.model.NextDiT, _Z_IMAGE, 2560),
}
CONFIG = TrainingConfig(steps=2, rank=4, learning_rate=1e-2, seed=0)


def wide(name: str):
    """A model of its real class and width in bf16, seeded."""
    network, config, _ = _MODELS[name]
    with torch.device("meta"):
        layout = network(**config, operations=comfy.ops.disable_weight_init, dtype=torch.bfloat16)
    state = random_state(layout, 0, torch.bfloat16)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.bfloat16})


def example(model, name: str) -> Example:
    generator = torch.Generator().manual_seed(1)
    time = (1,) * (model.model.latent_format.latent_dimensions - 2)
    latent = training_latent(model, torch.randn(1, 16, *time, 16, 16, generator=generator))[0]
    text = torch.randn(1, 12, _MODELS[name][2], generator=generator)
    return Example(latent, training_cond(model, [[text, {}]], latent))


@pytest.mark.full
@pytest.mark.parametrize("name", _MODELS)
def test_a_real_width_trains_and_its_file_works_gated_and_patched(name):
    model = wide(name)
    assert identify(model).name == name
    shown = example(model, name)
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        trained = train(denoiser, sites, Single([shown]), CONFIG)
    assert hook_count(model) == 0
    assert all(torch.isfinite(torch.tensor(trained.losses["loss"])))
    layers = trained.adapters["lora"]
    learnt = [site for site, factors in layers.items() if factors.up.any()]
    assert len(learnt) >= len(sites) - 2  # the last block's text stream has no way to the output

    lora = lora_state(layers, {})
    for key, tensor in lora.items():
        if "lora_B" in key:
            tensor.mul_(5.0)  # two steps are little; bf16 needs a difference to show
    predictions = {}
    for how in ("base", "gated", "patched"):
        base = patched(model, lora) if how == "patched" else model
        with open_denoiser(base) as denoiser, torch.no_grad():
            found, factors = lora_layers(model, lora).on(model)
            gates = GatedAdapters(found, {"lora": factors})
            rows = [{"lora": Gate()} if how == "gated" else {}]
            sigma = denoiser.sigma_at(torch.tensor([0.5]))
            with gates.attached(), gates.gated(rows):
                predictions[how] = denoiser.denoise(shown.latent[None], sigma, [shown.cond])
    change = (predictions["patched"] - predictions["base"]).norm()
    difference = (predictions["gated"] - predictions["patched"]).norm()
    # Patched weights are rounded to bf16, whose steps are 2^-8, gated terms are added in it.
    assert difference < 0.25 * change
    assert change > 0
    del model, denoiser
    gc.collect()
