"""What fusion reads of prompts: inputs of the text encoder's layers, and the contexts it gives."""

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


def reading_prompts(concept: Concept) -> tuple[str, ...]:
    """Return the prompts with which the text stages read a concept.

    The paper's two and its own where it has words; the trigger prompts of an ordinary LoRA.
    """
    if not concept.embeddings:
        return concept.prompts
    customary = f"photo of a <{concept.name}>", f"<{concept.name}>"
    return tuple(dict.fromkeys((*customary, *concept.prompts)))


def drawing_prompts(concept: Concept) -> tuple[str, ...]:
    """Return the prompts with which a concept is drawn, for the statistics of all other layers.

    Raises:
        ValueError: One of them does not name the concept, so its words would play no part.
    """
    prompts = concept.prompts or reading_prompts(concept)[:1]
    for prompt in prompts:
        if concept.embeddings and f"<{name_key(concept.name)}>" not in name_key(prompt):
            raise ValueError(
                f"the prompts of <{concept.name}> must name it, got {prompt[:80]!r}; write "
                f"<{concept.name}> into it, or leave the prompts empty"
            )
    return prompts


def bindings(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> list[Tokens]:
    """Return a prompt's tokens once for every row that the concept's words have."""
    bound = _bound(clip, concept, prompt)
    rows = {name_key(concept.name): concept.embeddings}
    return [bound.at(rows, layer) for layer in range(concept.layers)]


def real_tokens(clip: comfy.sd.CLIP, tokens: Tokens) -> dict[str, Tensor]:
    """Return which tokens are no padding, ``(chunk, token)`` by text encoder.

    All up to the first that ends the text, that one included.
    """
    found = {}
    for name, tokenizer in text_tokenizers(clip).items():
        chunks = tokens.get(TOKENS_OF[name], [])
        mask = torch.zeros(len(chunks), max(map(len, chunks), default=0), dtype=torch.bool)
        for row, chunk in zip(mask, chunks, strict=True):
            row[: _end_of([token for token, _ in chunk], tokenizer.end_token) + 1] = True
        found[name] = mask
    return found


def count_real(clip: comfy.sd.CLIP, concept: Concept) -> int:
    """Return how many tokens of a concept's prompts are no padding, over all bindings.

    Of the first text encoder: a concept's rows count as many times less as it has more of them.
    """
    first = loaded_encoders(clip)[0]
    return sum(
        int(real_tokens(clip, tokens)[first].sum())
        for prompt in reading_prompts(concept)
        for tokens in bindings(clip, concept, prompt)
    )


def count_readings(concept: Concept) -> int:
    """Return how many times the text encoder runs for a concept's prompts."""
    return len(reading_prompts(concept)) * concept.layers


def read_prompts(clip: comfy.sd.CLIP, concept: Concept, watch: InputWatch, on_step: OnStep) -> None:
    """Let a text encoder read all of a concept's prompts while its layers are watched.

    Args:
        clip: With the concept's own LoRA on it.
        concept: Whose prompts are read, each once for every row of its words.
        watch: Told which tokens count.
        on_step: Called after every reading.
    """
    with watch.attached():
        for prompt in reading_prompts(concept):
            for tokens in bindings(clip, concept, prompt):
                watch.prompt, watch.keep = prompt, real_tokens(clip, tokens)
                clip.encode_from_tokens(tokens)
                on_step()
    watch.keep = None


def context_rows(
    clip: comfy.sd.CLIP, concept: Concept, layers: int, on_step: OnStep
) -> list[Tensor]:
    """Return what the cross-attentions see of a concept's prompts, ``(row, dim)`` by layer.

    Of a concept's words and the token that ends the text, as the paper has it; of an ordinary
    LoRA's trigger prompts all tokens but the first, which is the same in every prompt.

    Args:
        clip: With the text encoder's changes on it: the concept's own, or the fused ones.
        concept: Whose prompts are read.
        layers: How many contexts the model takes.
        on_step: Called after every prompt.

    Raises:
        ValueError: A context is not finite.
    """
    by_layer: list[list[Tensor]] = [[] for _ in range(layers)]
    for prompt in reading_prompts(concept):
        places = _places(clip, concept, prompt)
        context, options = encode(clip, concept, prompt)[0]
        own = options[PROMPT].layers if PROMPT in options else None
        for layer, rows in enumerate(by_layer):
            seen = context[0] if own is None else own[0, layer]
            rows.append(seen[places].float().cpu())
            if not bool(torch.isfinite(rows[-1]).all()):
                raise ValueError(
                    f"the context of layer {layer} at the prompt {prompt!r} of {concept.name!r} "
                    "must be finite, got NaN or infinity; lower this LoRA's strength or run the "
                    "text encoder in fp32"
                )
        on_step()
    return [torch.cat(rows) for rows in by_layer]


def encode(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> Conditioning:
    """Return the CONDITIONING of one of a concept's prompts."""
    return encode_concept_prompt(clip, [concept], prompt)


def _bound(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> BoundPrompt:
    words = {name_key(concept.name): concept.words} if concept.embeddings else {}
    return bound_prompt(clip, prompt, words)


def _places(clip: comfy.sd.CLIP, concept: Concept, prompt: str) -> list[int]:
    """Return where in a prompt's context the rows stand that count."""
    first = loaded_encoders(clip)[0]
    end = text_tokenizers(clip)[first].end_token
    chunks = _bound(clip, concept, prompt).tokens[TOKENS_OF[first]]
    places, before = [], 0
    for chunk in chunks:
        tokens = [token for token, _ in chunk]
        last = _end_of(tokens, end)
        if concept.embeddings:
            inside = [place for place, token in enumerate(tokens) if is_marker(token)]
        else:
            inside = list(range(1, last))
        places += [before + place for place in (*inside, last)]
        before += len(chunk)
    return places


def _end_of(tokens: Sequence[object], end: int | None) -> int:
    """Return the place of the first token that ends the text, of the last one without it."""
    for place, token in enumerate(tokens):
        if isinstance(token, int) and token == end:
            return place
    return len(tokens) - 1
