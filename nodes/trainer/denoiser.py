"""A MODEL as the training loop's Denoiser: loaded, differentiable, restored afterwards."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

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


class ComfyDenoiser:
    """A loaded base model as ``(x, sigma, conds) -> denoised``, fulfilling ``training.Denoiser``.

    Args:
        patcher: A patcher whose model is loaded; ``open_denoiser`` makes one.
        saved: What ``allow_mutation_on_saved_tensors`` yields, where it is in force.
        offloaded: Whether the weights stay in ordinary memory.
        text: The text encoder, where captions are encoded anew in every step.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        saved: object | None = None,
        offloaded: bool = False,
        text: TrainableTextEncoder | None = None,
    ):
        self.patcher, self._offloaded, self.text = patcher, offloaded, text
        self._maps: list[Tensor] = []
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

    def encoded(self, conds: Sequence[TrainingCond | LiveCaption]) -> list[TrainingCond]:
        """Return conditions of one forward as the model takes them, differentiable.

        Raises:
            RuntimeError: Captions are to be encoded, but no text encoder was opened.
        """
        learnt = [cond for cond in conds if isinstance(cond, LiveCaption)]
        if learnt and self.text is None:
            raise RuntimeError(
                "captions that are encoded in every step need a text encoder, got none; open the "
                "denoiser with one"
            )
        if not learnt:
            return list(conds)
        return encode_live_captions(self.text, self.model, learnt, self.device)

    def attention(self) -> Sequence[Tensor]:
        """Return the maps of the last ``denoise``, ``(row, word, h, w)`` for each size."""
        return self._maps

    def denoise(
        self, x: Tensor, sigma: Tensor, conds: Sequence[TrainingCond | LiveCaption]
    ) -> Tensor:
        """Return the prediction of the clean latent, differentiable, one cond per row.

        Raises:
            ValueError: The conds of the rows can't share a forward.
            RuntimeError: As ``encoded``.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._forget_finished_graphs()
        watched = [getattr(cond, "watched_positions", ()) for cond in conds]
        conds = self.encoded(conds)
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
        if LAYERS in arguments:
            options["wrappers"] = layer_wrappers()
        watch = AttentionWatch(watched) if torch.is_grad_enabled() and all(watched) else None
        options = watch.options(options) if watch else options
        denoised = self.model.apply_model(x, sigma, transformer_options=options, **arguments)
        self._maps = watch.maps() if watch else []
        return denoised

    def reload(self) -> None:
        """Bring the base back to where it was loaded, should another model have taken its place."""
        make_differentiable(self.patcher)  # what was moved under inference mode
        text = [self.text.clip.patcher] if self.text else []
        if not self._offloaded:
            _load_whole([self.patcher, *text])
            return
        _load_whole(text)
        held = comfy.model_management.current_loaded_models
        if not any(loaded.model is self.patcher for loaded in held):
            _load_offloaded(self.patcher)

    def _forget_finished_graphs(self) -> None:
        # torch 2.11 keeps the address of every tensor ever saved; without a live graph none counts.
        if self._saved is not None and not self._saved.tid_to_weakhandle:
            self._saved.sid_to_tid.clear()


def _load_whole(patchers: Sequence[ModelPatcher]) -> None:
    """Load patchers side by side, whole, over ordinary tensors."""
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
    """Load a MODEL for training and yield it as a Denoiser; everything is restored at the end.

    Forward and backward both belong inside the block. The MODEL's weight patches and object
    patches are honoured, its sampling-time patches ignored with one warning.

    Args:
        model: The base; never changed.
        precision: ``auto`` keeps the compute dtype, except that fp16, whose small gradients
            vanish, becomes bf16 where the device has it and fp32 elsewhere; ``fp32``; ``bf16``,
            in which a text encoder computes too: otherwise it stays in ComfyUI's fp32.
        checkpointing: Recompute each block in backward instead of keeping its activations.
        offload: Keep the base's weights in ordinary memory, on the device only while in use.
            Implies checkpointing: backward would otherwise hold every weight on the device.
        clip: A text encoder that takes part in the training, beside the denoiser; never changed.
        family: The base's family where it is known; ``None`` looks at the base.

    Raises:
        ValueError: The base can't be trained on; see ``identify_for_training``.
        RuntimeError: It can't be loaded a second time, which dynamic VRAM would need.
    """
    family = family or identify_for_training(model)
    # Before inference mode is left: torch loses the versions of inference tensors moved outside it.
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
    """Switch off ComfyUI's kernels that have no backward."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _no_cast_streams() -> Iterator[None]:
    """Bring offloaded weights over on the stream that computes.

    On their own streams ComfyUI hands the memory of a weight to the next one as soon as forward
    has used it; backward uses it again.
    """
    before = comfy.model_management.NUM_STREAMS
    comfy.model_management.NUM_STREAMS = 0
    try:
        yield
    finally:
        comfy.model_management.NUM_STREAMS = before


def _load_offloaded(patcher: ModelPatcher) -> None:
    """Load a patcher as ComfyUI does when memory is short, with room for no layer at all."""
    make_differentiable(patcher)  # before loading, which pins the weights where they lie
    loaded = comfy.model_management.LoadedModel(patcher)
    loaded.model_load(lowvram_model_memory=1)
    comfy.model_management.current_loaded_models.insert(0, loaded)


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
    ignored = strip_sampling(patcher)
    if ignored:
        logging.warning("Pastiche: training ignores sampling-time patches: %s", ", ".join(ignored))
    return patcher


def keeps_casts(patcher: ModelPatcher) -> bool:
    """Return whether the weights lie in less than they compute in: fp8 or quantised.

    Without checkpointing backward would hold a cast copy of every one of them, the whole base in
    twice its size.
    """
    return any(
        isinstance(weight, QuantizedTensor) or weight.dtype.itemsize == 1
        for weight in patcher.model.diffusion_model.parameters()
    )


def set_compute_dtype(patcher: ModelPatcher, precision: str) -> None:
    """Let a patcher compute in a precision, one of ``PRECISIONS``, from its next loading on."""
    weights = patcher.model_dtype()
    current = patcher.get_model_object("manual_cast_dtype") or weights
    wanted = _DTYPES.get(precision, current)
    if wanted == torch.float16:
        has_bf16 = comfy.model_management.should_use_bf16(patcher.load_device)
        wanted = torch.bfloat16 if has_bf16 else torch.float32
    if wanted != current:
        patcher.set_model_compute_dtype(wanted)
