"""Gates and gradients while weights are offloaded: forced on the CPU, and for real on a GPU.

The GPU part is run by ``python3 scripts/dev.py test`` on a machine with CUDA.
"""

from contextlib import contextmanager

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import pytest
import torch
from pack.nodes.bridge.conditioning import training_cond, training_latent
from pack.nodes.bridge.denoiser import ComfyDenoiser, make_differentiable, open_denoiser
from pack.nodes.bridge.sites import file_sites, training_sites
from pack.training.adapters import new_adapter
from pack.training.config import TrainingConfig
from pack.training.denoiser import Example
from pack.training.gates import Gate, GatedAdapters
from pack.training.loop import row_errors, train
from pack.training.recipes import Row, Single
from test_gates import hook_count, patched, random_lora, relative
from test_training import warm_adapter
from tiny import tiny, tiny_cond, tiny_latent, weights_hash

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no GPU")
NAMES = ("sd15", "sd3", "wan21")  # Flux's residuals need open_denoiser's record of saved tensors
CPU = torch.device("cpu")


@contextmanager
def loaded_partially(model, device):
    """Every layer that can be offloaded is: weights and patches are cast on each call."""
    patcher = model.clone()
    with torch.inference_mode(False), torch.enable_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "in_training", True)  # kernels with a backward
        patcher.load(device, lowvram_model_memory=1)
        make_differentiable(patcher)
        try:
            assert patcher.model.model_lowvram
            yield ComfyDenoiser(patcher)
        finally:
            patcher.detach()


def example(model) -> Example:
    latent = training_latent(model, tiny_latent(model, 8, 8)["samples"])[0]
    return Example(latent, training_cond(model, tiny_cond(model, 8), latent))


def gated_prediction(denoiser, gates, shown):
    with torch.no_grad(), gates.attached(), gates.gated([{"lora": Gate()}]):
        sigma = denoiser.sigma_at(torch.tensor([0.5]))
        return denoiser.denoise(shown.latent[None].to(denoiser.device), sigma, [shown.cond])


def gradient(denoiser, sites, shown):
    adapter = warm_adapter(sites, denoiser.device)
    gates = GatedAdapters(sites, {"lora": adapter})
    row = Row("lora", shown, {"lora": Gate()})
    with gates.attached():
        row_errors(denoiser, gates, [row], 0, 0).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()]).cpu()


@pytest.mark.parametrize("name", NAMES)
def test_gates_over_offloaded_weights_equal_loaded_ones(name):
    model = tiny(name)
    before = weights_hash(model)
    upstream = patched(model, random_lora(model, seed=50))  # its patches are applied on each call
    sites, adapter = file_sites(model, random_lora(model))
    gates = GatedAdapters(sites, {"lora": adapter})
    shown = example(model)
    with open_denoiser(upstream) as denoiser:
        expected = gated_prediction(denoiser, gates, shown)
    with loaded_partially(upstream, CPU) as denoiser:
        assert denoiser.patcher.lowvram_patch_counter() > 0
        found = gated_prediction(denoiser, gates, shown)
    assert relative(found, expected) < 1e-5
    assert hook_count(model) == 0
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_gradients_over_offloaded_weights_equal_loaded_ones(name):
    model = tiny(name)
    shown = example(model)
    with open_denoiser(model) as denoiser:
        expected = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    with loaded_partially(model, CPU) as denoiser:
        found = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    assert relative(found, expected) < 1e-5


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


@needs_gpu
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


@needs_gpu
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan21"])
def test_gates_over_dynamic_weights_equal_loaded_ones(name, dynamic_vram, tiny_file):
    model = tiny_file(name)
    sites, adapter = file_sites(model, random_lora(tiny(name)))
    gates = GatedAdapters(sites, {"lora": adapter})
    shown = example(model)
    comfy.model_management.load_models_gpu([model])
    found = gated_prediction(ComfyDenoiser(model), gates, shown)
    plain = tiny(name)
    sites, adapter = file_sites(plain, random_lora(plain))
    with open_denoiser(plain) as denoiser:
        expected = gated_prediction(denoiser, GatedAdapters(sites, {"lora": adapter}), shown)
    assert relative(found, expected) < 1e-3  # GPU kernels may use TF32


@needs_gpu
@pytest.mark.parametrize("name", NAMES)
def test_gradients_over_weights_left_in_ram_equal_loaded_ones(name):
    model = tiny(name, fresh=True)
    shown = example(model)
    with open_denoiser(model) as denoiser:
        expected = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    with loaded_partially(model, comfy.model_management.get_torch_device()) as denoiser:
        found = gradient(denoiser, training_sites(denoiser.patcher, "attention"), shown)
    assert relative(found, expected) < 1e-3


def test_adapters_follow_the_device_of_the_denoiser():
    model = tiny("sd15")
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        adapter = new_adapter("lora", Single([]).adapters()["lora"], sites, 4, 0, denoiser.device)
        assert {parameter.device for parameter in adapter.parameters()} == {denoiser.device}
