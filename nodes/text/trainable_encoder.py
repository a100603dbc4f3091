"""A CLIP that gradients flow through, many prompts at once."""

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


class LearntText:
    """A text encoder loaded for training.

    Args:
        clip: A clone over ordinary tensors; ``open_text`` makes one.
        device: Where it computes.
        half: Whether its products are computed in bf16, as the base's are, rather than in fp32.
    """

    def __init__(self, clip: CLIP, device: torch.device, half: bool = False):
        self.clip, self.device, self._half = clip, device, half

    def encode(self, prompts: Sequence[Sequence[Tokens]]) -> list[list[tuple[Any, ...]]]:
        """Return what the model's own ``encode_token_weights`` gives, for each row and binding.

        Every encoder runs once for all of them, the sections of a row side by side, so that the
        gates of the rows hold here as in the denoiser.

        Args:
            prompts: By row, its bindings; as many in each row and of equal lengths.
        """
        model = self.clip.cond_stage_model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": self.device})
        try:
            with ExitStack() as stack:
                if self._half:
                    stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
                for name, encoder in encoders_of(model).items():
                    found = _encoded(
                        encoder, [_sections(encoder, t, name) for r in prompts for t in r]
                    )
                    stack.enter_context(_answering(encoder, found))
                return [[model.encode_token_weights(tokens) for tokens in row] for row in prompts]
        finally:
            model.reset_clip_options()


def encoders_of(model: torch.nn.Module) -> dict[str, SDClipModel]:
    """Return the single encoders of a CLIP's model by ComfyUI's names, such as ``clip_l``."""
    return {name: child for name, child in model.named_children() if isinstance(child, SDClipModel)}


def _sections(encoder: SDClipModel, tokens: Tokens, name: str) -> list[list[Any]]:
    """Return the lists that the encoder's own weighting will ask to be encoded."""
    pairs = tokens[TOKENS_OF[name]]
    lists = [[token for token, _ in section] for section in pairs]
    if not lists or any(weight != 1.0 for section in pairs for _, weight in section):
        longest = max((len(section) for section in lists), default=0)
        make = getattr(encoder, "gen_empty_tokens", gen_empty_tokens)
        lists.append(make(encoder.special_tokens, longest))
    return lists


def _encoded(encoder: SDClipModel, asked: Sequence[list[list[Any]]]) -> list[tuple[Any, ...]]:
    """Return the encoder's answers to all that is asked of it, computed in one batch."""
    out, pooled, *extra = encoder.encode([tokens for lists in asked for tokens in lists])
    sizes = [len(lists) for lists in asked]
    # ComfyUI weights tokens in place, which backward refuses in parts of one tensor.
    apart_out = [part.clone() for part in out.split(sizes)]
    parts = [apart_out, [None] * len(sizes) if pooled is None else pooled.split(sizes)]
    answers: list[tuple[Any, ...]] = list(zip(*parts, strict=True))
    if extra:
        apart = {name: value.split(sizes) for name, value in extra[0].items()}
        answers = [
            (*answer, {name: values[place] for name, values in apart.items()})
            for place, answer in enumerate(answers)
        ]
    return answers


@contextmanager
def _answering(encoder: SDClipModel, answers: Sequence[tuple[Any, ...]]) -> Iterator[None]:
    """Let the encoder give these answers, one a call."""
    left = iter(answers)
    encoder.encode = lambda tokens: next(left)
    try:
        yield
    finally:
        del encoder.encode


@contextmanager
def open_text(clip: CLIP, recompute: bool, half: bool = False) -> Iterator[LearntText]:
    """Yield a CLIP as gradients can flow through it, not loaded yet; restored at the end.

    Residuals are added out of place, which backward needs, and layers are recomputed in backward
    where asked, and on a GPU where their weights are cast: all the casts would be kept else.

    Args:
        clip: Never changed.
        recompute: Whether layers are recomputed whatever their weights.
        half: Of ``LearntText``.

    Raises:
        RuntimeError: It can't be loaded a second time, which dynamic VRAM would need.
    """
    patcher = _plain_patcher(clip)
    live = clip.clone()
    live.patcher, live.cond_stage_model = patcher, patcher.model
    recompute |= casts_weights(patcher.model) and torch.device(patcher.load_device).type != "cpu"
    layers = [
        layer for encoder in encoders_of(patcher.model).values() for layer in layers_of(encoder)
    ]
    with in_place_layers(layers, recompute):
        yield LearntText(live, torch.device(patcher.load_device), half)


def casts_weights(model: torch.nn.Module) -> bool:
    """Return whether weights lie in less than the fp32 that text encoders compute in."""
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
    """Return an encoder's layers in order, CLIP's or T5's."""
    text_model = getattr(encoder.transformer, "text_model", None)
    if text_model is not None:
        return list(text_model.encoder.layers)
    return list(encoder.transformer.encoder.block)
