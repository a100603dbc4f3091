"""Gates and gradients while weights are offloaded: forced here, on a GPU by gpu_lowvram.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gated_loras import hook_count, patched, random_lora, relative
from lowvram_case import NAMES, example, gated_prediction, gradient, loaded_partially
from pack.lora_ops import Plain
from pack.nodes.lora.layers import lora_layers
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.adapters import new_adapter
from pack.training.gates import GatedAdapters
from tiny import tiny, weights_hash

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_gates_over_offloaded_weights_equal_loaded_ones(name):
    model = tiny(name)
    before = weights_hash(model)
    upstream = patched(model, random_lora(model, seed=50))  # its patches are applied on each call
    sites, adapter = lora_layers(model, random_lora(model)).on(model)
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
