"""Gates and gradients while weights are offloaded: forced here, on a GPU by gpu_lowvram.py."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import pytest
import torch
from pack.lora_ops import Plain
from pack.nodes.lora.layers import file_sites
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import ComfyDenoiser, make_differentiable, open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.adapters import new_adapter
from pack.training.denoiser import Example
from pack.training.gates import Gate, GatedAdapters
from pack.training.loop import row_errors
from pack.training.recipes import Row
from test_gates import hook_count, patched, random_lora, relative
from test_training import CONFIG, warm_adapter
from tiny import tiny, tiny_cond, tiny_latent, weights_hash

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
        row_errors(denoiser, gates, [row], replace(CONFIG, seed=0), 0).sum().backward()
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no GPU")
def test_dynamic_and_offloaded_loading_on_a_gpu():
    """Runs gpu_lowvram.py in a process of its own: ComfyUI fixes its device on import."""
    tests = Path(__file__).with_name("gpu_lowvram.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env={**os.environ, "PASTICHE_TEST_GPU": "1"}, check=False)
    assert result.returncode == 0


def test_adapters_follow_the_device_of_the_denoiser():
    model = tiny("sd15")
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        adapter = new_adapter("lora", Plain(), sites, 4, 0, denoiser.device)
        assert {parameter.device for parameter in adapter.parameters()} == {denoiser.device}
