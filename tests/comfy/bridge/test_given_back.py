"""After a run with checkpointing or offload: memory given back, the next picture as before."""

import comfy.model_management
import comfy.sample
import pytest
import torch
from checkpointing_case import CHECKPOINTED, OFFLOADED, example, step_gradient
from gated_loras import hook_count
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training import train
from pack.training.gates import Gate
from pack.training.recipes import Row, Single
from tiny import tiny, tiny_cond, tiny_latent, weights_hash
from training_case import CONFIG


def picture(model):
    """Return what ComfyUI's sampler makes of the model, three steps with CFG."""
    latent = tiny_latent(model, 8, 8)["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(5))
    positive, negative = tiny_cond(model, seed=1), tiny_cond(model, seed=2)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 3, 4.0, "euler", "normal", positive, negative, latent, seed=1
        )


# ComfyUI's own loading leaves these on modules: empty lists and flags, as their classes have them.
COMFYS_OWN = {"weight_function", "bias_function", "comfy_cast_weights", "comfy_force_cast_weights"}


def attributes(model):
    """Return every name that hangs on a module of the network, and its kind."""
    held = []
    for module in model.model.modules():
        assert not any(getattr(module, name, None) for name in COMFYS_OWN)
        names = {name: type(value).__name__ for name, value in vars(module).items()}
        held.append({name: kind for name, kind in names.items() if name not in COMFYS_OWN})
    return held


class StopError(Exception):
    """A failure in the middle of a run."""


def fail(event):
    raise StopError


def run_out(event):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def interrupt(event):
    comfy.model_management.interrupt_current_processing(True)


INTERRUPTED = comfy.model_management.InterruptProcessingException
ENDINGS = [
    (None, None),
    (fail, StopError),
    (run_out, torch.OutOfMemoryError),
    (interrupt, INTERRUPTED),
]


@pytest.mark.parametrize("name", ["sd15", "flux", "wan21"])
@pytest.mark.parametrize("how", [CHECKPOINTED, OFFLOADED])
@pytest.mark.parametrize(("callback", "raised"), ENDINGS)
def test_the_next_picture_is_as_before(name, how, callback, raised):
    model = tiny(name)
    weights, before, held = weights_hash(model), picture(model), attributes(model)

    def run():
        with open_denoiser(model, **how) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            train(denoiser, sites, Single([example(model)]), CONFIG, [callback] if callback else [])

    if raised is None:
        run()
    else:
        with pytest.raises(raised):
            run()
    assert hook_count(model) == 0
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert not comfy.model_management.in_training
    assert not comfy.model_management.current_loaded_models
    assert weights_hash(model) == weights
    assert torch.equal(picture(model), before)
    assert attributes(model) == held
    assert weights_hash(model) == weights


def test_an_interrupt_in_backward_ends_the_run_there():
    """The interrupt comes while a block is recomputed and ends that block."""
    model = tiny("sdxl")
    block = model.model.diffusion_model.input_blocks[5][1].transformer_blocks[0]
    calls = []

    def second_call(module, args):
        calls.append(len(calls))
        if len(calls) == 2:
            interrupt(None)

    def run():
        with open_denoiser(model, checkpointing=True) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            train(denoiser, sites, Single([example(model)]), CONFIG)

    handle = block.attn1.to_q.register_forward_pre_hook(second_call)
    try:
        with pytest.raises(INTERRUPTED):
            run()
    finally:
        handle.remove()
    assert len(calls) == 2
    assert hook_count(model) == 0
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_a_forward_that_someone_else_put_on_a_block_is_put_back():
    model = tiny("sd3", fresh=True)
    block = model.model.diffusion_model.joint_blocks[0]
    own = block.forward
    calls = []

    def foreign(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    block.forward = foreign
    with open_denoiser(model, checkpointing=True) as denoiser:
        step_gradient(denoiser, [Row("lora", example(model), {"lora": Gate()})])
    assert len(calls) == 2  # once in forward, once in backward
    assert block.forward is foreign
