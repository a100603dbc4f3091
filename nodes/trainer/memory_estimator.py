"""Estimate the memory of a run by executing one step on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy.sd import CLIP
from torch import Tensor, nn

from ...training import Recipe, TrainingConfig, TrainingSettings
from ...training.block_checkpoints import (
    checkpointed_blocks,
    in_place_layers,
    out_of_place_blocks,
)
from ...training.gates import Layer
from ...training.loop import packs, row_errors, updates_of
from ...training.memory import LiveBytes, MemoryNeed, optimizer_bytes
from ...training.recipes.rows import Row
from ...training.session import Session
from ..bridge.families import network_blocks
from ..text.trainable_encoder import TrainableTextEncoder, casts_weights, encoders_of, layers_of
from .base import Base
from .denoiser import ComfyDenoiser, in_training, keeps_casts, set_compute_dtype
from .target_layers import sites_on

_SAMPLED_STEPS = 32  # number of steps among which the largest forward pass is searched
_OVERHEAD = 32 * 1024**2  # bytes that torch's kernels and its allocator use in addition to tensors
_META = torch.device("meta")


@dataclass(frozen=True, eq=False)
class MemoryEstimator:
    """Estimates the memory of a run for given settings.

    Args:
        base: Base of the run; never changed.
        layers: Layers that are trained.
        text_encoder: Text encoder that takes part in every step, or None; never changed.
        recipe: Recipe that chooses the rows of every step.
    """

    base: Base
    layers: Mapping[str, Layer]
    text_encoder: CLIP | None
    recipe: Recipe

    def estimate(self, config: TrainingConfig, settings: TrainingSettings) -> MemoryNeed:
        """Return the memory that the run needs on its device; nothing is loaded or computed.

        The network is copied to the meta device, and the largest forward and backward pass of the
        run is executed there with the training loop's own code while the live bytes are counted.

        Args:
            config: Configuration of the run.
            settings: Training settings; precision, checkpointing and offload are used.
        """
        model, clip, family = self.base.model, self.text_encoder, self.base.family
        device = torch.device(model.load_device)
        recomputes = settings.checkpointing or settings.offload or keeps_casts(model)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(in_training())
            stack.enter_context(_attention_of(device))
            patcher = _meta_patcher(model, settings)
            blocks = network_blocks(patcher.model.diffusion_model, family)
            in_place = family.blocks.in_place_residuals
            if recomputes:
                stack.enter_context(checkpointed_blocks(blocks, in_place))
            elif in_place:
                # Training saves copies of overwritten tensors, which needs as much memory but does
                # not work without addresses.
                stack.enter_context(out_of_place_blocks(blocks))
            encoder = None if clip is None else stack.enter_context(_meta_text(clip, settings))
            denoiser = ComfyDenoiser(patcher, text=encoder)
            rows = _largest_pack(denoiser, self.recipe, config)
            known = [*patcher.model.parameters(), *patcher.model.buffers()]
            if encoder is not None:
                network = encoder.clip.cond_stage_model
                known += [*network.parameters(), *network.buffers()]
            sites = sites_on(self.layers, patcher, encoder.clip if encoder else None)
            live = stack.enter_context(LiveBytes(known))
            session = Session(denoiser, sites, self.recipe, config)
            adapters, live.peak = live.live, live.live
            with session.gates.attached(), session.gates.gated([row.gates for row in rows]):
                errors = row_errors(denoiser, session.gates, rows, config, 0, session.words)
                errors.sum().backward()
            peak = live.peak
        learnt = list(session.parameters.values())
        gradients = sum(parameter.nbytes for parameter in learnt)
        moments = optimizer_bytes(session.optimizer)
        stays = device.type == "cpu" or not settings.offload
        weights = model.model_size() if stays else 0
        return MemoryNeed(
            weights=weights + (clip.patcher.model_size() if clip is not None else 0),
            learnt=adapters + gradients + moments,
            activations=max(0, peak - adapters - gradients) + _OVERHEAD,
        )


def _largest_pack(denoiser: ComfyDenoiser, recipe: Recipe, config: TrainingConfig) -> Sequence[Row]:
    """Return the rows of the largest forward pass among evenly spaced steps of the run."""
    count = min(config.steps, _SAMPLED_STEPS)
    steps = {round(number * (config.steps - 1) / max(1, count - 1)) for number in range(count)}
    found: list[Sequence[Row]] = []
    for step in sorted(steps):
        rows = recipe.rows(step, config.seed)
        updates = updates_of(rows, config)
        found += [pack for update in updates for pack in packs(denoiser, update, config)]
    return max(found, key=lambda rows: sum(row.example.latent.numel() for row in rows))


def _meta_patcher(model: ModelPatcher, settings: TrainingSettings) -> ModelPatcher:
    """Return a patcher for a copy of the network on the meta device, set up as for training."""
    patcher = model.clone()
    set_compute_dtype(patcher, settings.precision)
    compute_dtype = patcher.get_model_object("manual_cast_dtype")
    forced = patcher.force_cast_weights
    patcher.model = _meta_module(model.model, {})
    patcher.model.manual_cast_dtype = compute_dtype
    patcher.load_device = patcher.offload_device = _META
    copied = settings.offload and torch.device(model.load_device).type != "cpu"
    for module, original in zip(patcher.model.modules(), model.model.modules(), strict=True):
        if hasattr(module, "comfy_cast_weights"):
            layer = cast(comfy.ops.CastWeightBiasOp, module)
            layer.comfy_cast_weights = layer.comfy_cast_weights or forced
            if copied or isinstance(getattr(original, "weight", None), QuantizedTensor):
                # Offloaded and quantised weights are copied on every call.
                layer.comfy_cast_weights = True
                layer.weight_function, layer.bias_function = [_same], [_same]
    return patcher


@contextmanager
def _meta_text(clip: CLIP, settings: TrainingSettings) -> Iterator[TrainableTextEncoder]:
    """Yield a copy of a text encoder whose weights and outputs are on the meta device."""
    copy = clip.clone()
    copy.cond_stage_model = _meta_module(clip.cond_stage_model, {})
    layers = [
        one for kind in encoders_of(copy.cond_stage_model).values() for one in layers_of(kind)
    ]
    recompute = settings.checkpointing or (
        casts_weights(copy.cond_stage_model)
        and torch.device(clip.patcher.load_device).type != "cpu"
    )
    intermediate = comfy.model_management.intermediate_device
    comfy.model_management.intermediate_device = lambda: _META
    try:
        with in_place_layers(layers, recompute):
            yield TrainableTextEncoder(copy, _META)
    finally:
        comfy.model_management.intermediate_device = intermediate


def _same(weight: Tensor) -> Tensor:
    return weight


def _meta_module(module: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Return a copy of a module with tensors on the meta device; everything else is shared."""
    if id(module) not in copies:
        copy = module.__new__(type(module))
        copy.__dict__.update(module.__dict__)
        copies[id(module)] = copy
        copy.__dict__["_parameters"] = _meta_tensors(module.__dict__["_parameters"], copies)
        copy.__dict__["_buffers"] = _meta_tensors(module.__dict__["_buffers"], copies)
        copy.__dict__["_modules"] = {
            name: child if child is None else _meta_module(child, copies)
            for name, child in module.__dict__["_modules"].items()
        }
        # A forward that ComfyUI has patched and restored is an attribute bound to the old module.
        for name, value in module.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is module:
                copy.__dict__[name] = MethodType(value.__func__, copy)
    return copies[id(module)]


def _meta_tensors(
    tensors: Mapping[str, Tensor | None], copies: dict[int, Any]
) -> dict[str, Tensor | None]:
    for tensor in tensors.values():
        if tensor is not None and id(tensor) not in copies:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_META)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return {
        name: tensor if tensor is None else copies[id(tensor)] for name, tensor in tensors.items()
    }


@contextmanager
def _attention_of(device: torch.device) -> Iterator[None]:
    """Make attention on the meta device use as much memory as on a real device.

    ComfyUI reads the free memory of the tensors' device to choose its method, and torch falls back
    to unfused attention on devices without a fused kernel. Both are replaced inside the block.
    """
    free, attention = comfy.model_management.get_free_memory, comfy.ops.scaled_dot_product_attention

    def free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        return free(device if dev == _META else dev, torch_free_too)

    comfy.model_management.get_free_memory = free_memory
    comfy.ops.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        comfy.model_management.get_free_memory = free
        comfy.ops.scaled_dot_product_attention = attention


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any
) -> Tensor:
    """Return attention on the meta device, which saves as much for backward as fused kernels.

    Args:
        query: ``(batch, head, token, channel)``.
        key: ``(batch, key head, key token, channel)``.
        value: ``(batch, key head, key token, channel)``.
        attn_mask: Attention mask in torch's form.
        others: Further arguments of torch's function, which change no shape.
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (part.repeat_interleave(repeats, 1) for part in (key, value))
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, attn_mask=attn_mask)[0]
