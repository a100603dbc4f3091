"""Interrupt runs, and compare resumed runs with uninterrupted ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from pack.nodes.trainer.target_layers import training_sites
from pack.training import TrainingSettings
from pair_inputs import progress, queue
from tiny import tiny_cond, tiny_latent, weights_hash

from nodes import KSampler

STEPS = 6
EVERY_STEP = TrainingSettings(save_every_steps=1)
CANCEL = comfy.model_management.InterruptProcessingException

_UNDISTURBED: dict[tuple, tuple] = {}


def results(output: Path, steps: int = STEPS) -> tuple[dict[str, bytes], dict]:
    """Return the LoRA files and loss curves of the only finished run of ``steps`` steps."""
    (folder,) = output.glob(f"pastiche/*/{steps} steps")
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert set(files) == {"style.safetensors", "content_1.safetensors"}
    return files, json.loads((folder / "run.json").read_text())["losses"]


@pytest.fixture(name="undisturbed")
def undisturbed_run(tmp_path_factory):
    """Return a function that gives the results of an uninterrupted run, trained once per kind."""

    def trained(name: str = "sd3", **changes) -> tuple[dict[str, bytes], dict]:
        kind = (name, tuple(sorted(changes.items())))
        if kind not in _UNDISTURBED:
            output = tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(folder_paths, "output_directory", str(output))
                queue(name, **{"steps": STEPS, **changes})
            _UNDISTURBED[kind] = results(output, changes.get("steps", STEPS))
        return _UNDISTURBED[kind]

    return trained


def left_behind(model) -> dict:
    """Return all state of a model and of ComfyUI that a training might leave changed."""
    modules = list(model.model.modules())
    return {
        "weights": weights_hash(model),
        "hooks": sum(
            len(hooks)
            for module in modules
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ),
        "wrappers": sum(
            len(found) for kinds in model.wrappers.values() for found in kinds.values()
        ),
        "injections": len(model.injections),
        "options": repr(model.model_options),
        "in_training": comfy.model_management.in_training,
        "trainable": sum(parameter.requires_grad for parameter in model.model.parameters()),
    }


def next_picture(model) -> torch.Tensor:
    with torch.inference_mode():
        positive, negative = tiny_cond(model, seed=1), tiny_cond(model, seed=2)
        (latent,) = KSampler().sample(
            model, 3, 2, 4.0, "euler", "normal", positive, negative, tiny_latent(model)
        )
    return latent["samples"]


@contextmanager
def breaking(model, call: int, error: type[BaseException], where: str) -> Iterator[None]:
    """Let a layer of the model raise in the forward or backward pass of its ``call``-th call."""
    layer = list(training_sites(model, "attention").values())[-1].module
    left = [call]

    def fail(*args) -> None:
        raise error

    def hook(module, args, output):
        # Only training steps count, not previews or the estimate of memory on the meta device.
        if output.requires_grad and not output.is_meta:
            left[0] -= 1
            if left[0] == 0 and where == "forward":
                fail()
            if left[0] == 0:
                output.register_hook(fail)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def cancelled_at(step: int, **changes) -> None:
    """Queue a run and cancel it after a step."""

    def cancel(value: int, total: int) -> None:
        if value == step:
            comfy.model_management.interrupt_current_processing()

    with progress(cancel), pytest.raises(CANCEL):
        queue(**{"steps": STEPS, **changes})


def tensors_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files without their headers, which contain the run's id."""
    return {name: data[8 + int.from_bytes(data[:8], "little") :] for name, data in files.items()}
