"""Dynamic VRAM and offloaded loading on a GPU; ``test_lowvram.py`` starts this file on its own.

By hand: ``PASTICHE_TEST_GPU=1 pytest --import-mode=importlib tests/comfy/trainer/gpu_lowvram.py``.
"""

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import pytest
import torch
from gated_loras import hook_count, random_lora, relative
from lowvram_case import NAMES, example, gated_prediction, gradient, loaded_partially
from pack.nodes.lora.layers import lora_layers
from pack.nodes.trainer.denoiser import ComfyDenoiser, open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.config import TrainingConfig
from pack.training.gates import GatedAdapters
from pack.training.loop import train
from pack.training.recipes import Single
from tiny import tiny, weights_hash


@pytest.fixture
def tiny_file(tmp_path):
    """Return a maker of tiny models that were loaded from a file by core's own loader."""

    def load(name):
        source = tiny(name)
        path = tmp_path / f"{name}.safetensors"
        comfy.utils.save_torch_file(source.model.diffusion_model.state_dict(), str(path))
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})

    return load


@pytest.fixture
def dynamic_vram(monkeypatch):
    """Switch dynamic VRAM on, as ComfyUI's start does on an NVIDIA card."""
    import comfy_aimdo.control

    device = comfy.model_management.get_torch_device()
    if not comfy_aimdo.control.init_devices([(device.index or 0, 0)]):
        pytest.skip("not run: this GPU has no dynamic VRAM")
    monkeypatch.setattr(
        comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic
    )
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan21"])
def test_training_on_a_dynamic_model_uses_a_second_plain_copy(name, dynamic_vram, tiny_file):
    model = tiny_file(name)
    assert model.is_dynamic()
    before = weights_hash(model)
    config = TrainingConfig(steps=3, rank=4, learning_rate=1e-2, seed=0)
    with open_denoiser(model) as denoiser:
        assert not denoiser.patcher.is_dynamic()
        assert denoiser.model is not model.model
        sites = training_sites(denoiser.patcher, "attention")
        trained = train(denoiser, sites, Single([example(model)]), config)
        assert hook_count(denoiser.patcher) == 0
    assert all(factors.up.norm() > 0 for factors in trained.adapters["lora"].values())
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan21"])
def test_gates_over_dynamic_weights_equal_loaded_ones(name, dynamic_vram, tiny_file):
    model = tiny_file(name)
    sites, adapter = lora_layers(model, random_lora(tiny(name))).on(model)
    gates = GatedAdapters(sites, {"lora": adapter})
    shown = example(model)
    comfy.model_management.load_models_gpu([model])
    found = gated_prediction(ComfyDenoiser(model), gates, shown)
    with open_denoiser(model) as denoiser:  # a second, plain copy
        sites, adapter = lora_layers(denoiser.patcher, random_lora(tiny(name))).on(denoiser.patcher)
        expected = gated_prediction(denoiser, GatedAdapters(sites, {"lora": adapter}), shown)
    assert relative(found, expected) < 1e-3  # GPU kernels may use TF32


@pytest.mark.parametrize("name", NAMES)
def test_gradients_over_weights_left_in_ram_equal_loaded_ones(name):
    model = tiny(name, fresh=True)
    shown = example(model)
    with open_denoiser(model) as denoiser:
        expected = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    with loaded_partially(model, comfy.model_management.get_torch_device()) as denoiser:
        found = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    assert relative(found, expected) < 1e-3
