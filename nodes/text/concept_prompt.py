"""Tokenize and encode prompts that name trained concepts.

Training and sampling both tokenize a prompt with ``bound_prompt``, so they encode it identically.
A concept's name is replaced by its learnt embeddings, which are called rows, one for each word.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer, escape_important
from torch import Tensor

from ...training.files.concept import TEXT_WIDTHS, Concept, name_key, named_once
from ..bridge.conditioning import Conditioning, encode_prompt

PROMPT = "pastiche_concept_prompt"  # option of a conditioning entry that holds its ConceptPrompt

# Embeddings ``(word, layer, dim)`` by the key of a concept's name, then by text encoder.
ConceptEmbeddings = Mapping[str, Mapping[str, Tensor]]

# Output of ComfyUI's tokenizers: chunks of tokens and weights by the tokenizer's key.
Tokens = dict[str, list[list[tuple[Any, float]]]]

# The tokenizer's key by the name of its text encoder.
TOKENS_OF = {"clip_l": "l", "clip_g": "g", "clip_h": "h", "t5xxl": "t5xxl", "umt5xxl": "umt5xxl"}
_IN_BRACKETS = re.compile(r"<([^<>\s]+)>")
_BREAK = re.compile(r"\bBREAK\b")
# Private-use characters, which occur in no prompt and in no file name of an embedding.
_FIRST, _LAST = "\ue000", "\ue001"


@dataclass(frozen=True, eq=False)
class ConceptPrompt:
    """The per-layer contexts that accompany a prompt's ordinary context.

    Args:
        context: The ordinary context ``(1, token, dim)``, encoded with each word's mean embedding.
            A comparison with the entry's context shows whether another node has changed it.
        layers: ``(1, layer, token, dim)``, one context per layer; None if all layers use the
            ordinary one.
        concepts: Name and digest of every concept that the text names.
    """

    context: Tensor
    layers: Tensor | None
    concepts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BoundPrompt:
    """A prompt's tokens, with markers where the concepts' embeddings are inserted.

    Args:
        tokens: Tokens with one marker for each word of a concept.
        concept_keys: Keys of the concepts in the text, each once, in order.
    """

    tokens: Tokens
    concept_keys: tuple[str, ...]

    def at(self, rows: ConceptEmbeddings, layer: int | None) -> Tokens:
        """Return the tokens with the embeddings of one layer inserted; differentiable.

        Args:
            rows: Embeddings of the concepts with which the prompt was bound.
            layer: Index of the layer; None for the mean over all layers.
        """
        encoders = {key: encoder for encoder, key in TOKENS_OF.items()}
        return {
            key: [
                [
                    (self._token(token, rows, encoders[key], layer), weight)
                    for token, weight in chunk
                ]
                for chunk in chunks
            ]
            for key, chunks in self.tokens.items()
        }

    def _token(self, token: Any, rows: ConceptEmbeddings, encoder: str, layer: int | None) -> Any:
        if not is_marker(token):
            return token
        concept, word = token.tolist()
        found = rows[self.concept_keys[concept]].get(encoder)
        if found is None:  # this encoder is not loaded, so its tokens are never read
            return torch.zeros(TEXT_WIDTHS[encoder])
        own = found[word]  # (layer, dim)
        if layer is None:
            return own.mean(dim=0)
        return own[layer if len(own) > 1 else 0]


def bound_prompt(clip: CLIP, text: str, words: Mapping[str, int]) -> BoundPrompt:
    """Return a prompt's tokens as ComfyUI makes them, with markers for the concepts' embeddings.

    Brackets weight ``<name>`` like any word, a chunk of 77 tokens never splits its embeddings, and
    ``embedding:`` words work. ``BREAK`` in capitals begins a new chunk if the text encoder uses
    chunks; T5 does not and ignores it.

    Args:
        clip: CLIP whose tokenizer is used; not modified.
        text: The prompt.
        words: Number of words of each concept, by the key of its name.

    Raises:
        ValueError: The prompt names an unknown concept, or a ``BREAK`` is inside brackets.
    """
    named = _named_concepts(text, words)
    parts = [part for part in _BREAK.split(text) if part.strip()] or [""]
    if len(parts) > 1:
        _require_closed_brackets(parts)

    def tokens_of(part: str) -> Tokens:
        return marking.tokenize(_with_embedding_words(part, named))

    marking = _with_markers(clip, [words[name] for name in named])
    tokens = tokens_of(" ".join(parts))
    if len(parts) > 1:
        chunked = [tokens_of(part) for part in parts]
        for encoder, tokenizer in text_tokenizers(clip).items():
            key = TOKENS_OF[encoder]
            if tokenizer.pad_to_max_length:
                tokens[key] = [chunk for part in chunked for chunk in part[key]]
    return BoundPrompt(tokens, named)


def encode_concept_prompt(clip: CLIP, concepts: Sequence[Concept], text: str) -> Conditioning:
    """Return the CONDITIONING of a prompt with concepts.

    The ordinary context and the pooled vector are encoded with each word's mean embedding, so a
    model without Apply Concept still draws a sensible picture. The contexts of the layers are
    stored in the entry's options.

    Args:
        clip: CLIP with the concepts' LoRAs on it, as Apply Concept returns it.
        concepts: Concepts that ``text`` may name as ``<name>``.
        text: The prompt.

    Raises:
        ValueError: A concept is unknown or made for another text encoder, or there is no CLIP.
    """
    known = {key: one for key, one in named_once(concepts).items() if one.embeddings}
    if clip is None:
        return encode_prompt(clip, text)
    for concept in known.values():
        require_text_encoders(clip, concept)
    prompt = bound_prompt(clip, text, {key: concept.words for key, concept in known.items()})
    used = [known[key] for key in prompt.concept_keys]
    rows = {key: concept.embeddings for key, concept in known.items()}
    plain = clip.encode_from_tokens_scheduled(prompt.at(rows, None))
    count = context_count(used)
    per_layer = [
        clip.encode_from_tokens_scheduled(prompt.at(rows, layer), show_pbar=False)
        for layer in range(count if count > 1 else 0)
    ]
    named = tuple((concept.name, concept.digest) for concept in used)
    result = []
    for number, (context, options) in enumerate(plain):
        layers = None
        if per_layer:
            layers = torch.stack([entries[number][0] for entries in per_layer], dim=1)
        result.append([context, {**options, PROMPT: ConceptPrompt(context, layers, named)}])
    return result


def context_count(concepts: Sequence[Concept]) -> int:
    """Return the number of contexts of a prompt with these concepts; 1 for an ordinary context.

    Raises:
        ValueError: Two concepts were made for models with different numbers of layers.
    """
    counts = {concept.layers: concept for concept in concepts if concept.layers > 1}
    if len(counts) > 1:
        (first, one), (second, other) = list(counts.items())[:2]
        raise ValueError(
            f"the concepts of a prompt must be made for one model, got <{one.name}> for {first} "
            f"layers and <{other.name}> for {second}; use concepts of the same base"
        )
    return next(iter(counts), 1)


def text_tokenizers(clip: CLIP) -> dict[str, SDTokenizer]:
    """Return a CLIP's tokenizers by the name of their text encoder.

    Raises:
        ValueError: Concepts cannot use one of the tokenizers.
    """
    found = {one.embedding_key: one for _, one in _tokenizers(clip)}
    unknown = sorted(set(found) - set(TEXT_WIDTHS))
    if unknown or not found:
        raise ValueError(
            f"concepts need the text encoders {', '.join(TEXT_WIDTHS)}, got a CLIP with "
            f"{', '.join(map(str, unknown)) or type(clip.tokenizer).__name__}; use a base of "
            "SD1.5, SD2, SDXL, SD3, Flux or Wan"
        )
    return found


def loaded_encoders(clip: CLIP) -> list[str]:
    """Return the names of a CLIP's loaded text encoders; SD3 can run without some of them.

    Raises:
        ValueError: Concepts cannot use one of the tokenizers.
    """
    model = clip.cond_stage_model
    return [name for name in text_tokenizers(clip) if getattr(model, name, model) is not None]


def require_text_encoders(clip: CLIP, concept: Concept) -> None:
    """Raise unless a concept was made for a CLIP's text encoders.

    Raises:
        ValueError: The concept lacks embeddings for a loaded encoder, or has embeddings for an
            encoder that the CLIP doesn't have.
    """
    missing = set(loaded_encoders(clip)) - set(concept.embeddings)
    if missing or set(concept.embeddings) - set(text_tokenizers(clip)):
        raise ValueError(
            f"<{concept.name}> must be made for this CLIP ({', '.join(loaded_encoders(clip))}), "
            f"got a concept for {', '.join(concept.embeddings)}; connect the CLIP of its base model"
        )


def _named_concepts(text: str, words: Mapping[str, int]) -> tuple[str, ...]:
    names = [(match[0], name_key(match[1])) for match in _IN_BRACKETS.finditer(text)]
    unknown = next((written for written, key in names if key not in words), None)
    if unknown is not None:
        known = ", ".join(f"<{name}>" for name in words) or "none"
        raise ValueError(
            f"every <name> in the prompt must be a connected concept, got {unknown[:80]}, where "
            f"{known} is connected; connect it, or write the word without < and >"
        )
    return tuple(dict.fromkeys(key for _, key in names))


def _with_embedding_words(text: str, named: tuple[str, ...]) -> str:
    """Return a prompt with ComfyUI's ``embedding:`` words in place of the concepts' names."""

    def word(match: re.Match[str]) -> str:
        # ComfyUI recognises ``embedding:`` only after a space or at the start of a weighted part.
        before = text[: match.start()]
        starts = not before or before[-1].isspace() or re.search(r"(?<!\\)[()]$", before)
        number = named.index(name_key(match[1]))
        return f"{'' if starts else ' '}embedding:{_FIRST}{number}{_LAST}"

    return _IN_BRACKETS.sub(word, text)


def _with_markers(clip: CLIP, words: Sequence[int]) -> CLIP:
    """Return a copy of a CLIP whose tokenizers find the concepts' words as embeddings."""
    marking = copy.copy(clip)
    marking.tokenizer = copy.copy(clip.tokenizer)
    text_tokenizers(clip)
    for attribute, tokenizer in _tokenizers(clip):
        own = copy.copy(tokenizer)
        # ComfyUI's tokenizer has no public hook for embeddings.
        vars(own)["_try_get_embedding"] = _lookup(tokenizer, words)
        own.embedding_directory = tokenizer.embedding_directory or []
        setattr(marking.tokenizer, attribute, own)
    return marking


def _lookup(
    tokenizer: SDTokenizer, words: Sequence[int]
) -> Callable[[str], tuple[Tensor | None, str, str]]:
    def find(text: str) -> tuple[Tensor | None, str, str]:
        if not text.startswith(_FIRST):
            return tokenizer._try_get_embedding(text)  # pyright: ignore[reportPrivateUsage]
        name, _, rest = text.removeprefix(_FIRST).partition(_LAST)
        concept = int(name)
        markers = torch.tensor([[concept, word] for word in range(words[concept])])
        return markers, name, rest.strip()

    return find


def is_marker(token: Any) -> bool:
    """Return whether a token is a marker, which holds the numbers of a concept and of its word."""
    return isinstance(token, Tensor) and not token.is_floating_point()


def _tokenizers(clip: CLIP) -> Iterator[tuple[str, SDTokenizer]]:
    for attribute, value in vars(clip.tokenizer).items():
        if isinstance(value, SDTokenizer):
            yield attribute, value


def _require_closed_brackets(parts: Sequence[str]) -> None:
    for part in parts:
        bare = escape_important(part)
        if bare.count("(") != bare.count(")"):
            raise ValueError(
                f"BREAK must stand outside of brackets, got {part.strip()[:80]!r} beside it; close "
                "the bracket before it and open another after it"
            )
