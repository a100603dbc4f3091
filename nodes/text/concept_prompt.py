"""Prompts with concepts: which rows stand at which place, and what the text encoders make of them.

Training and sampling read a prompt through the same ``bound_prompt``, so they encode alike.
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

PROMPT = "pastiche_concept_prompt"
"""Option of a conditioning entry: its ``ConceptPrompt``."""

Rows = Mapping[str, Mapping[str, Tensor]]
"""``(word, layer, dim)`` by text encoder, by the key of a concept's name."""

Tokens = dict[str, list[list[tuple[Any, float]]]]
"""What ComfyUI's tokenizers give: chunks of tokens and weights by their own names of encoders."""

TOKENS_OF = {"clip_l": "l", "clip_g": "g", "clip_h": "h", "t5xxl": "t5xxl", "umt5xxl": "umt5xxl"}
_IN_BRACKETS = re.compile(r"<([^<>\s]+)>")
_BREAK = re.compile(r"\bBREAK\b")
# Private-use characters: no prompt and no embedding's file name has them.
_FIRST, _LAST = "\ue000", "\ue001"


@dataclass(frozen=True, eq=False)
class ConceptPrompt:
    """What a prompt's conditioning carries beside its ordinary context.

    Args:
        context: The ordinary one, ``(1, token, dim)``, encoded with each word's mean row: tells
            whether another node has changed it since.
        layers: ``(1, layer, token, dim)``, a context per layer; None where all are ordinary.
        concepts: Name and digest of every concept that the text names.
    """

    context: Tensor
    layers: Tensor | None
    concepts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BoundPrompt:
    """A prompt's tokens, with the places where concepts' rows go.

    Args:
        tokens: With a marker in place of each row.
        named: Keys of the concepts in the text, each once, in order.
    """

    tokens: Tokens
    named: tuple[str, ...]

    def at(self, rows: Rows, layer: int | None) -> Tokens:
        """Return the tokens with the rows of one layer set in, differentiable.

        Args:
            rows: Of the concepts that the prompt was bound with.
            layer: Which one; None for the mean over all.
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

    def _token(self, token: Any, rows: Rows, encoder: str, layer: int | None) -> Any:
        if not is_marker(token):
            return token
        concept, word = token.tolist()
        found = rows[self.named[concept]].get(encoder)
        if found is None:  # an encoder that is not loaded: its tokens are never read
            return torch.zeros(TEXT_WIDTHS[encoder])
        own = found[word]  # (layer, dim)
        if layer is None:
            return own.mean(dim=0)
        return own[layer if len(own) > 1 else 0]


def bound_prompt(clip: CLIP, text: str, words: Mapping[str, int]) -> BoundPrompt:
    """Return a prompt's tokens as ComfyUI makes them, with marked places for concepts' rows.

    Brackets weight ``<name>`` as any word, chunks of 77 tokens never part its rows, and
    ``embedding:`` words work. ``BREAK`` in capitals begins a new chunk where the text encoder
    reads chunks; T5 reads on.

    Args:
        clip: Its tokenizer is used, never changed.
        text: The prompt.
        words: How many words each concept stands for, by the key of its name.

    Raises:
        ValueError: It names an unknown concept, or a ``BREAK`` stands in brackets.
    """
    named = _named(text, words)
    parts = [part for part in _BREAK.split(text) if part.strip()] or [""]
    if len(parts) > 1:
        _require_closed_brackets(parts)

    def tokens_of(part: str) -> Tokens:
        return reader.tokenize(_spelt_out(part, named))

    reader = _with_markers(clip, [words[name] for name in named])
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

    The ordinary context and the pooled vector are encoded with each word's mean row, so a model
    without Apply Concept draws a sensible picture. The contexts of the layers ride beside them.

    Args:
        clip: With the concepts' LoRAs on it, as Apply Concept makes it.
        concepts: Those that ``text`` may name as ``<name>``.
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
    used = [known[name] for name in prompt.named]
    rows = {key: concept.embeddings for key, concept in known.items()}
    plain = clip.encode_from_tokens_scheduled(prompt.at(rows, None))
    count = shared_layers(used)
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


def shared_layers(concepts: Sequence[Concept]) -> int:
    """Return how many contexts a prompt with these concepts has; 1 if an ordinary one will do.

    Raises:
        ValueError: Two were made for models with different numbers of layers.
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
        ValueError: One of them is none that concepts can use.
    """
    found = {one.embedding_key: one for _, one in _tokenizers(clip)}
    unknown = sorted(set(found) - set(TEXT_WIDTHS))
    if unknown or not found:
        raise ValueError(
            f"concepts need the text encoders {', '.join(TEXT_WIDTHS)}, got a CLIP with "
            f"{', '.join(map(str, unknown)) or type(clip.tokenizer).__name__}; use a base of SD1.5, "
            "SD2, SDXL, SD3, Flux or Wan"
        )
    return found


def wired_encoders(clip: CLIP) -> list[str]:
    """Return the text encoders of a CLIP that are loaded: SD3 may do without some.

    Raises:
        ValueError: As ``text_tokenizers`` has it.
    """
    model = clip.cond_stage_model
    return [name for name in text_tokenizers(clip) if getattr(model, name, model) is not None]


def require_text_encoders(clip: CLIP, concept: Concept) -> None:
    """Refuse a concept that was made for other text encoders than a CLIP has.

    Raises:
        ValueError: It lacks rows for one, or has rows for one that the CLIP does not know.
    """
    missing = set(wired_encoders(clip)) - set(concept.embeddings)
    if missing or set(concept.embeddings) - set(text_tokenizers(clip)):
        raise ValueError(
            f"<{concept.name}> must be made for this CLIP ({', '.join(wired_encoders(clip))}), got "
            f"a concept for {', '.join(concept.embeddings)}; connect the CLIP of its base model"
        )


def _named(text: str, words: Mapping[str, int]) -> tuple[str, ...]:
    names = [(match[0], name_key(match[1])) for match in _IN_BRACKETS.finditer(text)]
    unknown = next((written for written, key in names if key not in words), None)
    if unknown is not None:
        known = ", ".join(f"<{name}>" for name in words) or "none"
        raise ValueError(
            f"every <name> in the prompt must be a connected concept, got {unknown[:80]}, where "
            f"{known} is connected; connect it, or write the word without < and >"
        )
    return tuple(dict.fromkeys(key for _, key in names))


def _spelt_out(text: str, named: tuple[str, ...]) -> str:
    """Return a prompt with ComfyUI's ``embedding:`` words in place of the concepts' names."""

    def word(match: re.Match[str]) -> str:
        # Found at the start of a weighted part or after a space alone.
        before = text[: match.start()]
        starts = not before or before[-1].isspace() or re.search(r"(?<!\\)[()]$", before)
        number = named.index(name_key(match[1]))
        return f"{'' if starts else ' '}embedding:{_FIRST}{number}{_LAST}"

    return _IN_BRACKETS.sub(word, text)


def _with_markers(clip: CLIP, words: Sequence[int]) -> CLIP:
    """Return a copy of a CLIP whose tokenizers know the concepts' words as embeddings."""
    reader = copy.copy(clip)
    reader.tokenizer = copy.copy(clip.tokenizer)
    text_tokenizers(clip)
    for attribute, tokenizer in _tokenizers(clip):
        own = copy.copy(tokenizer)
        own._try_get_embedding = _lookup(tokenizer, words)
        own.embedding_directory = tokenizer.embedding_directory or []
        setattr(reader.tokenizer, attribute, own)
    return reader


def _lookup(
    tokenizer: SDTokenizer, words: Sequence[int]
) -> Callable[[str], tuple[Tensor | None, str, str]]:
    def find(text: str) -> tuple[Tensor | None, str, str]:
        if not text.startswith(_FIRST):
            return tokenizer._try_get_embedding(text)
        name, _, rest = text.removeprefix(_FIRST).partition(_LAST)
        concept = int(name)
        markers = torch.tensor([[concept, word] for word in range(words[concept])])
        return markers, name, rest.strip()

    return find


def is_marker(token: Any) -> bool:
    """Return whether a token stands for a concept's row: its two numbers, concept and word."""
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
