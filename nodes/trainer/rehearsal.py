"""A step rehearsed on the meta device: shapes without numbers, to know its memory beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

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

_STEPS_LOOKED_AT = 32
# What torch's kernels and its allocator keep beside any tensor.
_BESIDE_TENSORS = 32 * 1024**2
_META = torch.device("meta")


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a run's memory follows from, whatever its settings.

    Args:
        base: The base; never changed.
        layers: The layers that are trained.
        text_encoder: The text encoder that takes part, ``None`` for none; never changed.
        recipe: The rows of every step.
    """

    base: Base
    layers: Mapping[str, Layer]
    text_encoder: CLIP | None
    recipe: Recipe

    def need(self, config: TrainingConfig, settings: TrainingSettings) -> MemoryNeed:
        """Return what the run needs on its device; nothing is loaded, nothing computed.

        The network is copied without its numbers, and the largest forward and backward of the run
        go through the loop's own code while the tensors that live are counted.

        Args:
            config: The run.
            settings: Precision, checkpointing and offload.
        """
        model, clip, family = self.base.model, self.text_encoder, self.base.family
        device = torch.device(model.load_device)
        recomputes = settings.checkpointing or settings.offload or keeps_casts(model)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(in_training())
            stack.enter_context(_attention_of(device))
            patcher = _hollow_patcher(model, settings)
            blocks = network_blocks(patcher.model.diffusion_model, family)
            in_place = family.blocks.in_place_residuals
            if recomputes:
                stack.enter_context(checkpointed_blocks(blocks, in_place))
            elif in_place:
                # Training copies what is overwritten, which costs the same; that needs addresses.
                stack.enter_context(out_of_place_blocks(blocks))
            encoder = None if clip is None else stack.enter_context(_hollow_text(clip, settings))
            denoiser = ComfyDenoiser(patcher, text=encoder)
            rows = _largest_pack(denoiser, self.recipe, config)
            known = [*patcher.model.parameters(), *patcher.model.buffers()]
            if encoder is not None:
                held = encoder.clip.cond_stage_model
                known += [*held.parameters(), *held.buffers()]
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
            activations=max(0, peak - adapters - gradients) + _BESIDE_TENSORS,
        )


def _largest_pack(denoiser: ComfyDenoiser, recipe: Recipe, config: TrainingConfig) -> Sequence[Row]:
    """Return the rows of the run's largest forward, as far as some of its steps show."""
    count = min(config.steps, _STEPS_LOOKED_AT)
    steps = {round(number * (config.steps - 1) / max(1, count - 1)) for number in range(count)}
    found: list[Sequence[Row]] = []
    for step in sorted(steps):
        rows = recipe.rows(step, config.seed)
        updates = updates_of(rows, config)
        found += [pack for update in updates for pack in packs(denoiser, update, config)]
    return max(found, key=lambda rows: sum(row.example.latent.numel() for row in rows))


def _hollow_patcher(model: ModelPatcher, settings: TrainingSettings) -> ModelPatcher:
    """Return a patcher over a copy of the network on the meta device, as it will be loaded."""
    patcher = model.clone()
    set_compute_dtype(patcher, settings.precision)
    cast = patcher.get_model_object("manual_cast_dtype")
    forced = patcher.force_cast_weights
    patcher.model = _hollow(model.model, {})
    patcher.model.manual_cast_dtype = cast
    patcher.load_device = patcher.offload_device = _META
    brought = settings.offload and torch.device(model.load_device).type != "cpu"
    for module, original in zip(patcher.model.modules(), model.model.modules(), strict=True):
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = module.comfy_cast_weights or forced
            if brought or isinstance(getattr(original, "weight", None), QuantizedTensor):
                # Weights that come from elsewhere, or are unpacked, are copied on every call.
                module.comfy_cast_weights = True
                module.weight_function, module.bias_function = [_same], [_same]
    return patcher


@contextmanager
def _hollow_text(clip: CLIP, settings: TrainingSettings) -> Iterator[TrainableTextEncoder]:
    """Yield a text encoder over a copy on the meta device, its answers staying there."""
    hollow = clip.clone()
    hollow.cond_stage_model = _hollow(clip.cond_stage_model, {})
    layers = [
        one for kind in encoders_of(hollow.cond_stage_model).values() for one in layers_of(kind)
    ]
    recompute = settings.checkpointing or (
        casts_weights(hollow.cond_stage_model)
        and torch.device(clip.patcher.load_device).type != "cpu"
    )
    intermediate = comfy.model_management.intermediate_device
    comfy.model_management.intermediate_device = lambda: _META
    try:
        with in_place_layers(layers, recompute):
            yield TrainableTextEncoder(hollow, _META)
    finally:
        comfy.model_management.intermediate_device = intermediate


def _same(weight: Tensor) -> Tensor:
    return weight


def _hollow(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """Return a copy of a module on the meta device; all that is no tensor is shared with it."""
    if id(module) not in made:
        copy = module.__new__(type(module))
        copy.__dict__.update(module.__dict__)
        made[id(module)] = copy
        copy.__dict__["_parameters"] = _hollow_tensors(module._parameters, made)
        copy.__dict__["_buffers"] = _hollow_tensors(module._buffers, made)
        copy.__dict__["_modules"] = {
            name: child if child is None else _hollow(child, made)
            for name, child in module._modules.items()
        }
        # A forward that was patched and put back by ComfyUI is an attribute bound to its module.
        for name, value in module.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is module:
                copy.__dict__[name] = MethodType(value.__func__, copy)
    return made[id(module)]


def _hollow_tensors(
    tensors: Mapping[str, Tensor | None], made: dict[int, Any]
) -> dict[str, Tensor | None]:
    for tensor in tensors.values():
        if tensor is not None and id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_META)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return {
        name: tensor if tensor is None else made[id(tensor)] for name, tensor in tensors.items()
    }


@contextmanager
def _attention_of(device: torch.device) -> Iterator[None]:
    """Let attention on the meta device take the memory that it takes on a real one.

    ComfyUI asks what is free on the tensors' device, and torch spells attention out where it has
    no fused kernel; both must not know that the device is none.
    """
    free, attention = comfy.model_management.get_free_memory, comfy.ops.scaled_dot_product_attention

    def free_there(dev: Any = None, torch_free_too: bool = False) -> Any:
        return free(device if dev == _META else dev, torch_free_too)

    comfy.model_management.get_free_memory = free_there
    comfy.ops.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        comfy.model_management.get_free_memory = free
        comfy.ops.scaled_dot_product_attention = attention


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any
) -> Tensor:
    """Return attention's shape on the meta device, keeping for backward what fused kernels keep.

    Args:
        query: ``(batch, head, token, channel)``.
        key: ``(batch, key head, key token, channel)``.
        value: As ``key``.
        attn_mask: As torch's.
        others: Of torch's function; they change no shape.
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (part.repeat_interleave(repeats, 1) for part in (key, value))
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, attn_mask=attn_mask)[0]
