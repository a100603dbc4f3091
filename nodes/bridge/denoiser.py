"""A MODEL as the training loop's Denoiser: loaded, differentiable, restored afterwards."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...training.denoiser import Example
from ...training.families import Family
from .conditioning import TrainingCond
from .families import identify_for_training

# Their blocks add residuals in place, which backward would otherwise find overwritten.
_IN_PLACE_RESIDUALS = {"Flux", "Flux.2"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SAMPLING_OPTIONS = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "denoise_mask_function",
    "context_handler",
)


class ComfyDenoiser:
    """A loaded base model as ``(x, sigma, conds) -> denoised``, fulfilling ``training.Denoiser``.

    Args:
        patcher: A patcher whose model is loaded; ``open_denoiser`` makes one.
        saved: What ``allow_mutation_on_saved_tensors`` yields, where it is in force.
    """

    def __init__(self, patcher: ModelPatcher, saved: object | None = None):
        self.patcher = patcher
        self.model = patcher.model
        self.device = torch.device(patcher.load_device)
        self._saved = saved

    def sigma_at(self, share: Tensor) -> Tensor:
        """Return the noise levels at ``share`` in [0, 1) of the model's table, ``(batch,)``."""
        table = self.model.model_sampling.sigmas.to(share.device)
        return table[(share * len(table)).long().clamp(0, len(table) - 1)].float()

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the model's own forward process, all ``(batch, channel, ...)``."""
        return self.model.model_sampling.noise_scaling(sigma, noise, latent, False)

    def output_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        """Return ``b`` in ``denoised = a * x + b * model_output``, of the shape of ``like``."""
        ones = torch.ones_like(like)
        return self.model.model_sampling.calculate_denoised(sigma, ones, torch.zeros_like(like))

    def pack_key(self, example: Example) -> Hashable:
        """Return a key that is equal for examples that fit into one forward."""
        return example.cond.shape_key()

    def denoise(self, x: Tensor, sigma: Tensor, conds: Sequence[TrainingCond]) -> Tensor:
        """Return the prediction of the clean latent, differentiable, one cond per row.

        Raises:
            ValueError: The conds of the rows can't share a forward.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._forget_finished_graphs()
        rows = [
            {
                name: cond.process_cond(batch_size=1, area=None)
                for name, cond in cond.model_conds.items()
            }
            for cond in conds
        ]
        if not all(comfy.samplers.cond_equal_size(rows[0], row) for row in rows):
            raise ValueError(
                "the conditions of one forward must have equal shapes, got "
                f"{sorted({str(cond.shape_key()) for cond in conds})}; group rows by pack_key"
            )
        options = {
            "cond_or_uncond": [0] * len(rows),
            "uuids": list(range(len(rows))),
            "sigmas": sigma,
        }
        arguments = comfy.samplers.cond_cat(rows, device=self.device)
        return self.model.apply_model(x, sigma, transformer_options=options, **arguments)

    def _forget_finished_graphs(self) -> None:
        # torch 2.11 keeps the address of every tensor ever saved; without a live graph none counts.
        if self._saved is not None and not self._saved.tid_to_weakhandle:
            self._saved.sid_to_tid.clear()


@contextmanager
def open_denoiser(model: ModelPatcher, precision: str = "auto") -> Iterator[ComfyDenoiser]:
    """Load a MODEL for training and yield it as a Denoiser; everything is restored at the end.

    Forward and backward both belong inside the block. The MODEL's weight patches and object
    patches are honoured, its sampling-time patches ignored with one warning.

    Args:
        model: The base; never changed.
        precision: ``auto`` keeps the compute dtype, except that fp16, whose small gradients
            vanish, becomes bf16 where the device has it and fp32 elsewhere; ``fp32``; ``bf16``.

    Raises:
        ValueError: The base can't be trained on; see ``identify_for_training``.
        RuntimeError: It can't be loaded a second time, which dynamic VRAM would need.
    """
    family = identify_for_training(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_in_training())
        patcher = _plain_patcher(model, family)
        _set_compute_dtype(patcher, precision)
        stack.callback(comfy.model_management.unload_model_and_clones, patcher, all_devices=True)
        comfy.model_management.unload_all_models()
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        make_differentiable(patcher)
        stack.callback(patcher.cleanup)
        patcher.pre_run()
        saved = None
        if family.name in _IN_PLACE_RESIDUALS:
            saved = stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        yield ComfyDenoiser(patcher, saved)


@contextmanager
def _in_training() -> Iterator[None]:
    """Switch off ComfyUI's kernels that have no backward."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def make_differentiable(patcher: ModelPatcher) -> None:
    """Replace the network's inference tensors, which backward refuses, by ordinary ones.

    Loader nodes run under inference mode. The values stay; other patchers over the same network
    are served equally well by ordinary tensors.
    """
    for module in patcher.model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.is_inference():
                module._parameters[name] = torch.nn.Parameter(value.clone(), requires_grad=False)
        for name, value in list(module._buffers.items()):
            if value is not None and value.is_inference():
                module._buffers[name] = value.clone()


def _plain_patcher(model: ModelPatcher, family: Family) -> ModelPatcher:
    """Return a patcher with ordinary tensors, without what the MODEL carries for sampling."""
    if not model.is_dynamic():
        patcher = model.clone()
    elif model.cached_patcher_init is not None:
        # Dynamic VRAM may evict a weight between forward and backward: a second copy is loaded.
        patcher = model.clone(disable_dynamic=True, force_deepcopy=True)
    else:
        raise RuntimeError(
            f"training needs the {family.name} model loaded by one of ComfyUI's own loader nodes "
            "while dynamic VRAM is on, got one of another loader; use Load Checkpoint or Load "
            "Diffusion Model, or start ComfyUI with --disable-dynamic-vram"
        )
    ignored = _strip_sampling(patcher)
    if ignored:
        logging.warning("Pastiche: training ignores sampling-time patches: %s", ", ".join(ignored))
    return patcher


def _strip_sampling(patcher: ModelPatcher) -> list[str]:
    """Remove sampling-time patches from a clone and return what they were."""
    options = patcher.model_options
    transformer = options.get("transformer_options", {})
    carried = {
        **{name: options.get(name) for name in _SAMPLING_OPTIONS},
        **{f"transformer_options.{name}": value for name, value in transformer.items()},
        "injections (bypass LoRAs)": patcher.injections,
        "hook LoRAs": patcher.hook_patches,
        "wrappers": [entry for by_key in patcher.wrappers.values() for entry in by_key.values()],
        "additional models": patcher.additional_models,
    }
    patcher.model_options = {"transformer_options": {}}
    patcher.injections, patcher.is_injected = {}, False
    patcher.wrappers = WrappersMP.init_wrappers()
    patcher.hook_patches, patcher.additional_models = {}, {}
    return [name for name, value in carried.items() if value]


def _set_compute_dtype(patcher: ModelPatcher, precision: str) -> None:
    weights = patcher.model_dtype()
    current = patcher.get_model_object("manual_cast_dtype") or weights
    wanted = _DTYPES.get(precision, current)
    if wanted == torch.float16:
        has_bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        wanted = torch.bfloat16 if has_bf16 else torch.float32
    if wanted != current:
        patcher.set_model_compute_dtype(wanted)
