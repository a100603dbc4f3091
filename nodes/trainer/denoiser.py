"""Load a MODEL as a differentiable denoiser for the training loop, and restore it afterwards."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, MutableMapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from typing import Protocol

import comfy.model_management
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...training.block_checkpoints import checkpointed_blocks
from ...training.denoiser import Example
from ...training.families import Family
from ..bridge.families import identify_for_training, network_blocks
from ..bridge.sampling_options import strip_sampling
from ..text.attention_watch import AttentionWatch
from ..text.layer_contexts import LAYERS, layer_wrappers
from ..text.live_caption import LiveCaption, encode_live_captions
from ..text.trainable_encoder import TrainableTextEncoder, open_text_encoder
from ..text.training_cond import TrainingCond

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SavedTensors(Protocol):
    """The value of ``allow_mutation_on_saved_tensors``, whose class is private in torch."""

    @property
    def tid_to_weakhandle(self) -> Sized:
        """Return the handles of all tensors that live graphs have saved."""
        ...

    @property
    def sid_to_tid(self) -> MutableMapping[tuple[int, int], set[tuple[int, int, int]]]:
        """Return the ids of saved tensors by the id of their storage."""
        ...


class ComfyDenoiser:
    """A loaded base model that implements ``training.Denoiser``.

    Args:
        patcher: Patcher whose model is loaded; see ``open_denoiser``.
        saved: Value of ``allow_mutation_on_saved_tensors`` if it is active.
        offloaded: Whether the weights stay in CPU memory.
        text: Text encoder, if captions are encoded in every step.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        saved: SavedTensors | None = None,
        offloaded: bool = False,
        text: TrainableTextEncoder | None = None,
    ):
        self.patcher, self._offloaded, self.text = patcher, offloaded, text
        self._maps: list[Tensor] = []
        self.model = patcher.model
        self.device = torch.device(patcher.load_device)
        self._saved = saved

    def sigma_at(self, share: Tensor) -> Tensor:
        """Return the sigmas at the fractions ``share`` in [0, 1) of the schedule, ``(batch,)``."""
        table = self.model.model_sampling.sigmas.to(share.device)
        return table[(share * len(table)).long().clamp(0, len(table) - 1)].float()

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the latent noised by the model's forward process, ``(batch, channel, ...)``."""
        return self.model.model_sampling.noise_scaling(sigma, noise, latent, False)

    def output_scale(self, sigma: Tensor, like: Tensor) -> Tensor:
        """Return ``b`` in ``denoised = a * x + b * model_output``, of the shape of ``like``."""
        ones = torch.ones_like(like)
        return self.model.model_sampling.calculate_denoised(sigma, ones, torch.zeros_like(like))

    def pack_key(self, example: Example) -> Hashable:
        """Return a key that is equal for examples that can share a forward pass."""
        return example.cond.shape_key()

    def encoded(self, conds: Sequence[TrainingCond | LiveCaption]) -> list[TrainingCond]:
        """Return the encoded, differentiable conditions of one forward pass.

        Raises:
            RuntimeError: Captions must be encoded, but there is no text encoder.
        """
        learnt = [cond for cond in conds if isinstance(cond, LiveCaption)]
        if not learnt:
            return [cond for cond in conds if not isinstance(cond, LiveCaption)]
        if self.text is None:
            raise RuntimeError(
                "captions that are encoded in every step need a text encoder, got none; open the "
                "denoiser with one"
            )
        return encode_live_captions(self.text, self.model, learnt, self.device)

    def attention(self) -> Sequence[Tensor]:
        """Return the last ``denoise``'s attention maps, ``(row, word, h, w)`` per resolution."""
        return self._maps

    def denoise(
        self, x: Tensor, sigma: Tensor, conds: Sequence[TrainingCond | LiveCaption]
    ) -> Tensor:
        """Return the differentiable prediction of the clean latent, with one cond per row.

        Raises:
            ValueError: The conditions of the rows can't share a forward pass.
            RuntimeError: Captions must be encoded, but there is no text encoder.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._forget_finished_graphs()
        watched = [getattr(cond, "watched_positions", ()) for cond in conds]
        encoded = self.encoded(conds)
        rows = [
            {
                name: cond.process_cond(batch_size=1, area=None)
                for name, cond in cond.model_conds.items()
            }
            for cond in encoded
        ]
        if not all(comfy.samplers.cond_equal_size(rows[0], row) for row in rows):
            raise ValueError(
                "the conditions of one forward must have equal shapes, got "
                f"{sorted({str(cond.shape_key()) for cond in encoded})}; group rows by pack_key"
            )
        options = {
            "cond_or_uncond": [0] * len(rows),
            "uuids": list(range(len(rows))),
            "sigmas": sigma,
        }
        arguments = comfy.samplers.cond_cat(rows, device=self.device)
        if LAYERS in arguments:
            options["wrappers"] = layer_wrappers()
        watch = AttentionWatch(watched) if torch.is_grad_enabled() and all(watched) else None
        options = watch.options(options) if watch else options
        denoised = self.model.apply_model(x, sigma, transformer_options=options, **arguments)
        self._maps = watch.maps() if watch else []
        return denoised

    def reload(self) -> None:
        """Load the base again, in case another model has taken its place on the device."""
        make_differentiable(self.patcher)  # moving under inference mode made inference tensors
        text = [self.text.clip.patcher] if self.text else []
        if not self._offloaded:
            _load_whole([self.patcher, *text])
            return
        _load_whole(text)
        loaded_models = comfy.model_management.current_loaded_models
        if not any(loaded.model is self.patcher for loaded in loaded_models):
            _load_offloaded(self.patcher)

    def _forget_finished_graphs(self) -> None:
        # torch 2.11 keeps the ids of all tensors ever saved; without a live graph none is needed.
        if self._saved is not None and not self._saved.tid_to_weakhandle:
            self._saved.sid_to_tid.clear()


def _load_whole(patchers: Sequence[ModelPatcher]) -> None:
    """Load patchers completely and at the same time, with differentiable tensors."""
    if patchers:
        comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)
    for patcher in patchers:
        make_differentiable(patcher)


@contextmanager
def open_denoiser(
    model: ModelPatcher,
    precision: str = "auto",
    checkpointing: bool = False,
    offload: bool = False,
    clip: comfy.sd.CLIP | None = None,
    family: Family | None = None,
) -> Iterator[ComfyDenoiser]:
    """Load a MODEL for training and yield it as a denoiser; everything is restored at the end.

    Forward and backward must both run inside the block. Weight patches and object patches of the
    MODEL apply; its sampling-time patches are ignored with one warning.

    Args:
        model: Base model; never changed.
        precision: ``fp32``, ``bf16`` or ``auto``, which keeps the compute dtype of the base, except
            that fp16, whose small gradients underflow, becomes bf16 if the device supports it and
            fp32 otherwise. Only ``bf16`` also applies to the text encoder, which is fp32 otherwise.
        checkpointing: Whether each block is recomputed in backward instead of keeping its
            activations.
        offload: Whether the base's weights stay in CPU memory and are copied to the device only
            while in use. It implies checkpointing, because backward would otherwise keep every
            weight on the device.
        clip: Text encoder that is trained or encodes captions in every step; never changed.
        family: Family of the base; None identifies it.

    Raises:
        ValueError: The base can't be trained; see ``identify_for_training``.
        RuntimeError: Dynamic VRAM requires a second copy of the base, which can't be loaded.
    """
    family = family or identify_for_training(model)
    # This must run under inference mode, as inference tensors moved outside it lose their versions.
    comfy.model_management.unload_all_models()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(in_training())
        patcher = _plain_patcher(model, family)
        set_compute_dtype(patcher, precision)
        text = None
        if clip is not None:
            text = stack.enter_context(open_text_encoder(clip, checkpointing, precision == "bf16"))
        loaded = [patcher, *([text.clip.patcher] if text else [])]
        for one in loaded:
            stack.callback(comfy.model_management.unload_model_and_clones, one, all_devices=True)
        if offload:
            stack.enter_context(_no_cast_streams())
            _load_whole(loaded[1:])
            _load_offloaded(patcher)
        else:
            _load_whole(loaded)
        stack.callback(patcher.cleanup)
        patcher.pre_run()
        saved = None
        if checkpointing or offload or keeps_casts(patcher):
            blocks = network_blocks(patcher.model.diffusion_model, family)
            in_place = family.blocks.in_place_residuals
            stack.enter_context(checkpointed_blocks(blocks, in_place))
        elif family.blocks.in_place_residuals:
            saved = stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        yield ComfyDenoiser(patcher, saved, offload, text)


@contextmanager
def in_training() -> Iterator[None]:
    """Disable ComfyUI's kernels that have no backward inside the block."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _no_cast_streams() -> Iterator[None]:
    """Copy offloaded weights on the compute stream inside the block.

    On separate streams, ComfyUI reuses the memory of a weight for the next one as soon as forward
    has used it, but backward needs it again.
    """
    before = comfy.model_management.NUM_STREAMS
    comfy.model_management.NUM_STREAMS = 0
    try:
        yield
    finally:
        comfy.model_management.NUM_STREAMS = before


def _load_offloaded(patcher: ModelPatcher) -> None:
    """Load a patcher like ComfyUI's low-VRAM mode, with no layer kept on the device."""
    make_differentiable(patcher)  # before loading, which pins the weights in memory
    loaded = comfy.model_management.LoadedModel(patcher)
    loaded.model_load(lowvram_model_memory=1)
    comfy.model_management.current_loaded_models.insert(0, loaded)


def make_differentiable(patcher: ModelPatcher) -> None:
    """Replace the network's inference tensors by ordinary tensors with the same values.

    Loader nodes run under inference mode, and autograd refuses its tensors. Other patchers of the
    same network work with ordinary tensors too.
    """
    for module in patcher.model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and value.is_inference():
                module._parameters[name] = torch.nn.Parameter(value.clone(), requires_grad=False)
        for name, value in list(module._buffers.items()):
            if value is not None and value.is_inference():
                module._buffers[name] = value.clone()


def _plain_patcher(model: ModelPatcher, family: Family) -> ModelPatcher:
    """Return a clone without the MODEL's sampling-time patches and without dynamic VRAM."""
    if not model.is_dynamic():
        patcher = model.clone()
    elif model.cached_patcher_init is not None:
        # Dynamic VRAM may evict a weight between forward and backward, so a copy is loaded.
        patcher = model.clone(disable_dynamic=True, force_deepcopy=True)
    else:
        raise RuntimeError(
            f"training needs the {family.name} model loaded by one of ComfyUI's own loader nodes "
            "while dynamic VRAM is on, got one of another loader; use Load Checkpoint or Load "
            "Diffusion Model, or start ComfyUI with --disable-dynamic-vram"
        )
    ignored = strip_sampling(patcher)
    if ignored:
        logging.warning("Pastiche: training ignores sampling-time patches: %s", ", ".join(ignored))
    return patcher


def keeps_casts(patcher: ModelPatcher) -> bool:
    """Return whether weights are stored in fp8 or quantised, and are cast for every use.

    Without checkpointing, backward would keep the cast copies of all weights, which together are at
    least twice as large as the base.
    """
    return any(
        isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1
        for weight in patcher.model.diffusion_model.parameters()
    )


def set_compute_dtype(patcher: ModelPatcher, precision: str) -> None:
    """Set the compute dtype of a patcher, which applies when it is loaded next.

    Args:
        patcher: Patcher that is changed.
        precision: One of ``training.settings.PRECISIONS``.
    """
    weights = patcher.model_dtype()
    current = patcher.get_model_object("manual_cast_dtype") or weights
    wanted = _DTYPES.get(precision, current)
    if wanted == torch.float16:
        has_bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        wanted = torch.bfloat16 if has_bf16 else torch.float32
    if wanted != current:
        patcher.set_model_compute_dtype(wanted)
