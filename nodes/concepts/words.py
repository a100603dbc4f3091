"""Check a concept's words against the tokenizers, and initialise their embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.quant_ops import QuantizedTensor
from comfy.sd import CLIP
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ...lora_ops.vocabulary_density import RELEASED_BANDWIDTH, VocabularyDensity
from ...training.files.concept import concept_name
from ...training.randomness import generator_for
from ..text.concept_prompt import loaded_encoders, text_tokenizers
from ..text.trainable_encoder import encoders_of

# Whether the new word starts with the same embedding in all layers, or with one for each layer.
EMBEDDING_STARTS = ("one draw", "a draw per layer")

WORDS_PER_CONCEPT = 2  # a new word, and one that is initialised from the class word

# Mean norm of the embeddings in CLIP-L's vocabulary, to which the paper's learning rate relates.
CLIP_L_NORM = 0.38

_ROWS_AT_ONCE = 4096  # embeddings whose norms are computed in one step


def checked_words(clip: CLIP, name: str, class_word: str) -> tuple[str, str]:
    """Return a concept's name without brackets and its class word, both checked.

    Raises:
        ValueError: The name can't be written in a prompt or is already a token, or the class word
            is not exactly one token.
    """
    name, class_word = concept_name(name), class_word.strip()
    tokenizers = text_tokenizers(clip)
    for encoder in loaded_encoders(clip):
        if not _is_clip(encoder):
            continue
        if len(token_ids(tokenizers[encoder], name)) == 1:
            raise ValueError(
                f"name must be a word that the text encoder doesn't know, got {name!r}, which "
                f"{encoder} has as one token; choose a made-up word such as {name}1"
            )
        pieces = token_ids(tokenizers[encoder], class_word) if class_word else []
        if len(pieces) != 1:
            found = f"{class_word[:80]!r}, which is {len(pieces)}" if class_word else "none"
            raise ValueError(
                f"class_word must be one word that {encoder} has as one token, got {found}; choose "
                "a common word such as dog, man or chair"
            )
    if not class_word:
        raise ValueError(
            "class_word must be one word that says what it is, got none; write for example dog"
        )
    return name, class_word


def token_ids(tokenizer: SDTokenizer, word: str) -> list[int]:
    """Return a word's token ids without the start and end tokens."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    return tokenizer.tokenizer(word)["input_ids"][tokenizer.tokens_start : end]


def require_gradients(clip: CLIP) -> None:
    """Raise unless gradients reach the embeddings of every loaded text encoder.

    Raises:
        ValueError: A text encoder is a GGUF file or quantised in another way.
    """
    encoders = encoders_of(clip.cond_stage_model)
    for name in loaded_encoders(clip):
        if name not in encoders:
            raise ValueError(
                f"words are learnt through ComfyUI's own text encoders, got another for {name} "
                f"({type(clip.cond_stage_model).__name__}); load it with a core loader node"
            )
        for module in encoders[name].modules():
            weight = getattr(module, "weight", None)
            kind = type(weight).__name__
            if isinstance(weight, QuantizedTensor) or "ggml" in kind.lower():
                raise ValueError(
                    f"words are learnt through {name}, which must be in fp32, bf16, fp16 or fp8, "
                    f"got a quantised one ({kind}); load its ordinary file for training"
                )


def initial_rows(
    clip: CLIP, class_word: str, layers: int, seed: int, embedding_start: str
) -> dict[str, Tensor]:
    """Return the words' initial embeddings, ``(word, layer, dim)`` by text encoder.

    The new word's embeddings are drawn from a normal distribution whose mean norm is that of the
    vocabulary: a standard deviation of 0.0137 for CLIP-L, where the released code has 0.013. The
    second word starts with the class word's embedding; if T5 splits the class word, with the mean
    over its tokens.

    Args:
        clip: The text encoders; they are not changed.
        class_word: The checked class word.
        layers: Number of contexts that the denoiser reads.
        seed: Seed of the run.
        embedding_start: One of ``EMBEDDING_STARTS``.
    """
    tokenizers, norms = text_tokenizers(clip), vocabulary_norms(clip)
    rows = {}
    for encoder in loaded_encoders(clip):
        table = _vocabulary(encoders_of(clip.cond_stage_model)[encoder])
        own = table[token_ids(tokenizers[encoder], class_word)].detach().float().cpu().mean(dim=0)
        spread = norms[encoder] / table.shape[1] ** 0.5
        generator = generator_for(seed, "embedding", encoder)
        draws = layers if embedding_start == "a draw per layer" else 1
        drawn = torch.randn(draws, table.shape[1], generator=generator) * spread
        rows[encoder] = torch.stack([drawn.expand(layers, -1), own.expand(layers, -1)])
    return rows


def vocabulary_norms(clip: CLIP) -> dict[str, float]:
    """Return the mean norm of the vocabulary's embeddings by text encoder."""
    norms = {}
    for encoder in loaded_encoders(clip):
        table = _vocabulary(encoders_of(clip.cond_stage_model)[encoder])
        lengths = [part.detach().float().norm(dim=1) for part in table.split(_ROWS_AT_ONCE)]
        norms[encoder] = float(torch.cat(lengths).double().mean())
    return norms


def vocabulary_densities(clip: CLIP) -> dict[str, VocabularyDensity]:
    """Return the density of each vocabulary by text encoder.

    The bandwidth has the same ratio to the vocabulary's mean norm as the released one for CLIP-L.
    """
    norms = vocabulary_norms(clip)
    tables = {name: _vocabulary(encoders_of(clip.cond_stage_model)[name]) for name in norms}
    with torch.inference_mode(False):  # gradients will flow through the result
        return {
            name: VocabularyDensity.of(table, RELEASED_BANDWIDTH * norms[name] / CLIP_L_NORM)
            for name, table in tables.items()
        }


def encoders_without_lora(clip: CLIP, trainable: Sequence[str]) -> list[str]:
    """Return the loaded text encoders whose layers are not trained."""
    return [name for name in loaded_encoders(clip) if name not in trainable]


def _vocabulary(encoder: SDClipModel) -> Tensor:
    return encoder.transformer.get_input_embeddings().weight


def _is_clip(encoder: str) -> bool:
    return encoder.startswith("clip_")
