"""Encode many prompts at once with a CLIP that can be trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDClipModel, gen_empty_tokens

from ...training.block_checkpoints import in_place_layers
from .concept_prompt import TOKENS_OF, Tokens


class TrainableTextEncoder:
    """A text encoder that is loaded for training.

    Args:
        clip: Clone with ordinary tensors, as ``open_text_encoder`` makes it.
        device: Device of the computation.
        bf16: Whether matrix products use bf16, like those of the base model, instead of fp32.
    """

    def __init__(self, clip: CLIP, device: torch.device, bf16: bool = False):
        self.clip, self.device, self._bf16 = clip, device, bf16

    def encode(self, prompts: Sequence[Sequence[Tokens]]) -> list[list[tuple[Any, ...]]]:
        """Return the outputs of the model's ``encode_token_weights`` for each row and binding.

        Every encoder runs once for all prompts. The sections of a row are consecutive, so the
        rows' gates apply here as they do in the denoiser.

        Args:
            prompts: Bindings of each row; all rows have the same number and lengths of them.
        """
        model = self.clip.cond_stage_model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": self.device})
        try:
            with ExitStack() as stack:
                if self._bf16:
                    stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
                for name, encoder in encoders_of(model).items():
                    outputs = _encode_batch(
                        encoder,
                        [_sections(encoder, tokens, name) for row in prompts for tokens in row],
                    )
                    stack.enter_context(_replayed(encoder, outputs))
                return [[model.encode_token_weights(tokens) for tokens in row] for row in prompts]
        finally:
            model.reset_clip_options()


def encoders_of(model: torch.nn.Module) -> dict[str, SDClipModel]:
    """Return the single encoders of a CLIP's model by ComfyUI's names, such as ``clip_l``."""
    return {name: child for name, child in model.named_children() if isinstance(child, SDClipModel)}


def _sections(encoder: SDClipModel, tokens: Tokens, name: str) -> list[list[Any]]:
    """Return the token lists that ``encode_token_weights`` will pass to ``encode``."""
    pairs = tokens[TOKENS_OF[name]]
    lists = [[token for token, _ in section] for section in pairs]
    if not lists or any(weight != 1.0 for section in pairs for _, weight in section):
        longest = max((len(section) for section in lists), default=0)
        make = getattr(encoder, "gen_empty_tokens", gen_empty_tokens)
        lists.append(make(encoder.special_tokens, longest))
    return lists


def _encode_batch(encoder: SDClipModel, inputs: Sequence[list[list[Any]]]) -> list[tuple[Any, ...]]:
    """Return the outputs of ``encode`` for each of its inputs, computed in one batch."""
    out, pooled, *extra = encoder.encode([tokens for lists in inputs for tokens in lists])
    sizes = [len(lists) for lists in inputs]
    # ComfyUI weights tokens in place, which autograd does not allow on views of one tensor.
    split_out = [part.clone() for part in out.split(sizes)]
    parts = [split_out, [None] * len(sizes) if pooled is None else pooled.split(sizes)]
    outputs: list[tuple[Any, ...]] = list(zip(*parts, strict=True))
    if extra:
        split_extra = {name: value.split(sizes) for name, value in extra[0].items()}
        outputs = [
            (*output, {name: values[number] for name, values in split_extra.items()})
            for number, output in enumerate(outputs)
        ]
    return outputs


@contextmanager
def _replayed(encoder: SDClipModel, outputs: Sequence[tuple[Any, ...]]) -> Iterator[None]:
    """Make ``encoder.encode`` return precomputed outputs, one per call, inside the block."""
    remaining = iter(outputs)
    encoder.encode = lambda tokens: next(remaining)
    try:
        yield
    finally:
        del encoder.encode


@contextmanager
def open_text_encoder(
    clip: CLIP, recompute: bool, bf16: bool = False
) -> Iterator[TrainableTextEncoder]:
    """Yield a CLIP that supports backward, not loaded yet; restore its layers at the end.

    Residuals are added out of place, which backward requires. Layers are recomputed in backward if
    ``recompute`` is set, and on a GPU if their weights are cast, because autograd would keep every
    cast weight otherwise.

    Args:
        clip: The CLIP; not modified.
        recompute: Whether layers are always recomputed, whatever the dtype of their weights.
        bf16: Whether matrix products use bf16 instead of fp32.

    Raises:
        RuntimeError: The CLIP can't be loaded a second time, which dynamic VRAM requires.
    """
    patcher = _plain_patcher(clip)
    live = clip.clone()
    live.patcher, live.cond_stage_model = patcher, patcher.model
    recompute |= casts_weights(patcher.model) and torch.device(patcher.load_device).type != "cpu"
    layers = [
        layer for encoder in encoders_of(patcher.model).values() for layer in layers_of(encoder)
    ]
    with in_place_layers(layers, recompute):
        yield TrainableTextEncoder(live, torch.device(patcher.load_device), bf16)


def casts_weights(model: torch.nn.Module) -> bool:
    """Return whether some weights have another dtype than fp32, in which text encoders compute."""
    return any(weight.dtype != torch.float32 for weight in model.parameters())


def _plain_patcher(clip: CLIP) -> ModelPatcher:
    patcher = clip.patcher
    if not patcher.is_dynamic():
        return patcher.clone()
    if patcher.cached_patcher_init is None:
        raise RuntimeError(
            "training a text encoder needs a CLIP loaded by one of ComfyUI's own loader nodes "
            "while dynamic VRAM is on, got one of another loader; use Load Checkpoint or Load "
            "CLIP, or start ComfyUI with --disable-dynamic-vram"
        )
    return patcher.clone(disable_dynamic=True, force_deepcopy=True)


def layers_of(encoder: SDClipModel) -> list[torch.nn.Module]:
    """Return the layers of a CLIP or T5 encoder in order."""
    clip = getattr(encoder.transformer, "text_model", None)
    path = "encoder.block" if clip is None else "text_model.encoder.layers"
    return list(encoder.transformer.get_submodule(path).children())
