"""A concept's words before training: checked against the tokenizers, their rows at the start."""

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

STARTS = ("one draw", "a draw per layer")
"""How the new word begins: alike in all layers, or apart."""

WORDS = 2
"""A new one, and one that begins as the class word."""

CLIP_L_NORM = 0.38
"""About the mean norm of a row of CLIP-L's vocabulary, for which the paper's rate is made."""

_READ_AT_ONCE = 4096  # rows of a vocabulary


def checked_words(clip: CLIP, name: str, class_word: str) -> tuple[str, str]:
    """Return a concept's name and class word as they are used.

    Raises:
        ValueError: The name can't stand in a prompt or is a word already, or the class word is not
            one word of the text encoder's.
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
    """Return a word's tokens, without those of a prompt's start and end."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    return tokenizer.tokenizer(word)["input_ids"][tokenizer.tokens_start : end]


def require_gradients(clip: CLIP) -> None:
    """Check that gradients reach the rows of every wired text encoder.

    Raises:
        ValueError: One is a GGUF or another quantised one.
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


def starting_rows(
    clip: CLIP, class_word: str, layers: int, seed: int, embedding_start: str
) -> dict[str, Tensor]:
    """Return where the words' rows begin, ``(word, layer, dim)`` by text encoder.

    The new word's rows are normal draws as long as a row of the vocabulary on average: that is a
    spread of 0.0137 for CLIP-L, where the released code has 0.013. The class word's rows are its
    own, in T5, which may cut it up, the mean of its pieces.

    Args:
        clip: The text encoders; never changed.
        class_word: Checked.
        layers: Of the denoiser.
        seed: Of the run.
        embedding_start: One of ``STARTS``.
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
    """Return the mean norm of a row by text encoder."""
    norms = {}
    for encoder in loaded_encoders(clip):
        table = _vocabulary(encoders_of(clip.cond_stage_model)[encoder])
        lengths = [part.detach().float().norm(dim=1) for part in table.split(_READ_AT_ONCE)]
        norms[encoder] = float(torch.cat(lengths).double().mean())
    return norms


def vocabulary_densities(clip: CLIP) -> dict[str, VocabularyDensity]:
    """Return where each vocabulary lies dense; kernels are as wide as CLIP-L's beside its rows."""
    norms = vocabulary_norms(clip)
    tables = {name: _vocabulary(encoders_of(clip.cond_stage_model)[name]) for name in norms}
    with torch.inference_mode(False):  # gradients flow through what comes out
        return {
            name: VocabularyDensity.of(table, RELEASED_BANDWIDTH * norms[name] / CLIP_L_NORM)
            for name, table in tables.items()
        }


def encoders_without_lora(clip: CLIP, trainable: Sequence[str]) -> list[str]:
    """Return the wired text encoders whose layers stay as they are."""
    return [name for name in loaded_encoders(clip) if name not in trainable]


def _vocabulary(encoder: SDClipModel) -> Tensor:
    return encoder.transformer.get_input_embeddings().weight


def _is_clip(encoder: str) -> bool:
    return encoder.startswith("clip_")
