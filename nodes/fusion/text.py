"""Encode the prompts of a fusion for the statistics of the text encoder and of cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.sd
import torch
from torch import Tensor

from ...training.files.concept import Concept, name_key
from ..bridge.conditioning import Conditioning
from ..text.concept_prompt import (
    PROMPT,
    TOKENS_OF,
    BoundPrompt,
    Tokens,
    bound_prompt,
    encode_concept_prompt,
    is_marker,
    loaded_encoders,
    text_tokenizers,
)
from .activations import InputWatch

OnStep = Callable[[], None]


def encoder_prompts(concept: Concept) -> tuple[str, ...]:
    """Return the prompts with which a concept is encoded in the text and cross-attention stages.

    A concept with words has the paper's two prompts and its own; an ordinary LoRA has its trigger
    prompts.
    """
    if not concept.embeddings:
        return concept.prompts
    of_paper = f"photo of a <{concept.name}>", f"<{concept.name}>"
    return tuple(dict.fromkeys((*of_paper, *concept.prompts)))


def drawing_prompts(concept: Concept) -> tuple[str, ...]:
    """Return the prompts with which a concept is sampled, for the statistics of all other layers.

    Raises:
        ValueError: A prompt does not name the concept, so the concept's words would not be used.
    """
    prompts = concept.prompts or encoder_prompts(concept)[:1]
    for prompt in prompts:
        if concept.embeddings and f"<{name_key(concept.name)}>" not in name_key(prompt):
            raise ValueError(
                f"the prompts of <{concept.name}> must name it, got {prompt[:80]!r}; write "
                f"<{concept.name}> into it, or leave the prompts empty"
            )
    return prompts


def bound_tokens(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> list[Tokens]:
    """Return a prompt's tokens for every layer, with the layer's embeddings of the words."""
    bound = _bound(clip, concept, prompt)
    rows = {name_key(concept.name): concept.embeddings}
    return [bound.at(rows, layer) for layer in range(concept.layers)]


def real_tokens(clip: comfy.sd.CLIP, tokens: Tokens) -> dict[str, Tensor]:
    """Return the mask of tokens that are not padding, ``(chunk, token)`` by text encoder.

    These are all tokens of a chunk up to its first end token, inclusive.
    """
    found = {}
    for name, tokenizer in text_tokenizers(clip).items():
        chunks = tokens.get(TOKENS_OF[name], [])
        mask = torch.zeros(len(chunks), max(map(len, chunks), default=0), dtype=torch.bool)
        for row, chunk in zip(mask, chunks, strict=True):
            row[: _end_position([token for token, _ in chunk], tokenizer.end_token) + 1] = True
        found[name] = mask
    return found


def count_real_tokens(clip: comfy.sd.CLIP, concept: Concept) -> int:
    """Return the number of tokens of a concept's prompts that are not padding, over all layers.

    The tokens are those of the first text encoder. The sums are divided by this number, so that
    every concept has the same total weight.
    """
    first = loaded_encoders(clip)[0]
    return sum(
        int(real_tokens(clip, tokens)[first].sum())
        for prompt in encoder_prompts(concept)
        for tokens in bound_tokens(clip, concept, prompt)
    )


def count_encodings(concept: Concept) -> int:
    """Return the number of runs of the text encoder for a concept's prompts."""
    return len(encoder_prompts(concept)) * concept.layers


def encode_prompts(
    clip: comfy.sd.CLIP, concept: Concept, watch: InputWatch, on_step: OnStep
) -> None:
    """Encode all prompts of a concept while the inputs of the text encoder's layers are collected.

    Args:
        clip: CLIP with the concept's own LoRA.
        concept: The concept; each prompt is encoded once for every layer of its embeddings.
        watch: Statistics of the text encoder's layers.
        on_step: Function that is called after every run of the text encoder.
    """
    with watch.attached():
        for prompt in encoder_prompts(concept):
            for tokens in bound_tokens(clip, concept, prompt):
                watch.prompt, watch.token_masks = prompt, real_tokens(clip, tokens)
                clip.encode_from_tokens(tokens)
                on_step()
    watch.token_masks = None


def context_rows(
    clip: comfy.sd.CLIP, concept: Concept, layers: int, on_step: OnStep
) -> list[Tensor]:
    """Return the rows of a concept's contexts that count, ``(row, dim)`` for each context layer.

    For a concept with words they are the rows of its words and of the end token, as in the paper;
    for an ordinary LoRA all rows up to the end token except the first, which is the same in every
    prompt.

    Args:
        clip: CLIP with the text encoder's changes: the concept's own, or the fused ones.
        concept: The concept.
        layers: Number of contexts that the model takes.
        on_step: Function that is called after every prompt.

    Raises:
        ValueError: A context is not finite.
    """
    by_layer: list[list[Tensor]] = [[] for _ in range(layers)]
    for prompt in encoder_prompts(concept):
        positions = _context_positions(clip, concept, prompt)
        context, options = conditioning_of(clip, concept, prompt)[0]
        own = options[PROMPT].layers if PROMPT in options else None
        for layer, rows in enumerate(by_layer):
            layer_context = context[0] if own is None else own[0, layer]
            rows.append(layer_context[positions].float().cpu())
            if not bool(torch.isfinite(rows[-1]).all()):
                raise ValueError(
                    f"the context of layer {layer} at the prompt {prompt!r} of {concept.name!r} "
                    "must be finite, got NaN or infinity; lower this LoRA's strength or run the "
                    "text encoder in fp32"
                )
        on_step()
    return [torch.cat(rows) for rows in by_layer]


def conditioning_of(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> Conditioning:
    """Return the CONDITIONING of one of a concept's prompts."""
    return encode_concept_prompt(clip, [concept], prompt)


def _bound(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> BoundPrompt:
    words = {name_key(concept.name): concept.words} if concept.embeddings else {}
    return bound_prompt(clip, prompt, words)


def _context_positions(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> list[int]:
    """Return the positions of the rows of a prompt's context that count."""
    first = loaded_encoders(clip)[0]
    end = text_tokenizers(clip)[first].end_token
    chunks = _bound(clip, concept, prompt).tokens[TOKENS_OF[first]]
    positions, before = [], 0
    for chunk in chunks:
        tokens = [token for token, _ in chunk]
        last = _end_position(tokens, end)
        if concept.embeddings:
            inside = [position for position, token in enumerate(tokens) if is_marker(token)]
        else:
            inside = list(range(1, last))
        positions += [before + position for position in (*inside, last)]
        before += len(chunk)
    return positions


def _end_position(tokens: Sequence[object], end: int | None) -> int:
    """Return the position of the first end token, or of the last token if there is none."""
    for position, token in enumerate(tokens):
        if isinstance(token, int) and token == end:
            return position
    return len(tokens) - 1
