"""Predictions and gradients of models whose weights are offloaded."""

from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import ComfyDenoiser, make_differentiable
from pack.training.denoiser import Example
from pack.training.gates import Gate, GatedAdapters
from pack.training.loop import row_errors
from pack.training.recipes import Row
from tiny import tiny_cond, tiny_latent
from training_case import CONFIG, warm_adapter

NAMES = ("sd15", "sd3", "wan21")  # Flux's residuals need open_denoiser's record of saved tensors


@contextmanager
def loaded_partially(model, device):
    """Yield a denoiser with every possible layer offloaded: weights and patches are cast on each call."""
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
