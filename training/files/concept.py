"""The ``Concept`` value: a trained person, object or place with its words and its LoRA."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..families import Family
from .lora_state import LoraState, metadata_of
from .metadata import family_of

# Embedding width by text encoder, under ComfyUI's names, of all encoders that concepts support.
TEXT_WIDTHS: dict[str, int] = {
    "clip_l": 768,
    "clip_g": 1280,
    "clip_h": 1024,
    "t5xxl": 4096,
    "umt5xxl": 4096,
}

_LONGEST_NAME = 64
_UNWRITABLE = "<>()[]{}:,;|\\\"'`/*?"  # characters with a meaning in prompts, not allowed in names


@dataclass(frozen=True, eq=False)
class Concept:
    """A trained concept.

    The name stands for several consecutive words: in ED-LoRA for two, a new word and one
    initialised from a class word. Each word has one embedding per layer of the denoiser that reads
    the text, or a single embedding that all layers share. An ordinary LoRA that is fused has no
    words: it has no embeddings, only prompts that trigger it.

    Args:
        name: The word that users write as ``<name>``.
        class_words: Class of the concept, such as ``dog``; may be empty.
        embeddings: ``(word, layer, dim)`` by text encoder; finite, fp32 on the CPU. Empty for a
            LoRA without words.
        lora: LoRA on denoiser and text encoder; may be empty.
        prompts: Prompts with which gradient fusion samples.
        images: ``(batch, height, width, 3)`` pictures of the concept for gradient fusion, or None.
        strength: Multiplier of the LoRA.
        weight: Importance of this concept in a fusion.

    Raises:
        ValueError: The name can't be written in a prompt, or the embeddings are invalid.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2 (ED-LoRA).
    """

    name: str
    class_words: str
    embeddings: Mapping[str, Tensor]
    lora: LoraState = field(default_factory=lambda: LoraState({}))
    prompts: tuple[str, ...] = ()
    images: Tensor | None = None
    strength: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the name and the embeddings."""
        object.__setattr__(self, "name", concept_name(self.name))
        if self.embeddings or not self.prompts:
            check_embeddings(self.embeddings, self.name)

    @property
    def words(self) -> int:
        """Number of consecutive words that the name stands for; 0 for an ordinary LoRA."""
        return next((rows.shape[0] for rows in self.embeddings.values()), 0)

    @property
    def layers(self) -> int:
        """Number of embeddings of each word: one per layer, or 1."""
        return next((rows.shape[1] for rows in self.embeddings.values()), 1)

    @property
    def family(self) -> Family | None:
        """Model family that the concept was trained for; None if its LoRA does not record it."""
        return family_of(metadata_of(self.lora))

    @property
    def digest(self) -> str:
        """Digest of the words, equal before saving and after loading."""
        digest = hashlib.sha256(name_key(self.name).encode())
        for encoder, rows in sorted(self.embeddings.items()):
            digest.update(f"{encoder} {tuple(rows.shape)}".encode())
            digest.update(stored_rows(rows).numpy().tobytes())
        return digest.hexdigest()[:16]

    def mean_rows(self) -> dict[str, Tensor]:
        """Return each word's mean embedding over the layers, ``(word, dim)`` by text encoder."""
        return {encoder: rows.float().mean(dim=1) for encoder, rows in self.embeddings.items()}


def concept_name(text: str) -> str:
    """Return a concept's name without the brackets around it in prompts.

    Raises:
        ValueError: The name can't be written in a prompt.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if name.startswith("<") and name.endswith(">"):
        name = name[1:-1]
    fault = None
    if not name:
        fault = "an empty one"
    elif any(letter.isspace() for letter in name):
        fault = f"{name[:_LONGEST_NAME]!r} with a space in it"
    elif any(letter in _UNWRITABLE or not letter.isprintable() for letter in name):
        fault = f"{name[:_LONGEST_NAME]!r} with one of {_UNWRITABLE} or a control character in it"
    elif len(name) > _LONGEST_NAME:
        fault = f"one of {len(name)} characters"
    if fault is not None:
        raise ValueError(
            f"a concept's name must be one word of at most {_LONGEST_NAME} characters, got "
            f"{fault}; choose a word such as my_dog"
        )
    return name


def name_key(name: str) -> str:
    """Return a key of a name that ignores case, as prompts do."""
    return unicodedata.normalize("NFC", name).casefold()


def stored_rows(rows: Tensor) -> Tensor:
    """Return embeddings in the form of files and digests: fp16, on the CPU, contiguous."""
    return rows.detach().to("cpu", torch.float16).contiguous()


def check_embeddings(embeddings: Mapping[str, Tensor], name: str) -> None:
    """Raise unless embeddings have valid shapes and numbers that a file can store.

    Args:
        embeddings: ``(word, layer, dim)`` by text encoder.
        name: Name of the concept, for the message.

    Raises:
        ValueError: The embeddings are invalid; the message gives the text encoder and the reason.
    """
    where = f"the embeddings of <{name}>"
    if not embeddings:
        raise ValueError(f"{where} must hold rows for a text encoder, got none; train it again")
    for encoder, rows in embeddings.items():
        if encoder not in TEXT_WIDTHS:
            raise ValueError(
                f"{where} must be for {', '.join(TEXT_WIDTHS)}, got some for {encoder[:80]!r}; "
                "use a base with one of these text encoders"
            )
        shape = tuple(rows.shape)
        if len(shape) != 3 or 0 in shape or shape[-1] != TEXT_WIDTHS[encoder]:
            raise ValueError(
                f"{where} for {encoder} must have the shape (word, layer, {TEXT_WIDTHS[encoder]}), "
                f"got {shape}; it was made for another text encoder or is damaged"
            )
        if not rows.is_floating_point() or not bool(stored_rows(rows).isfinite().all()):
            raise ValueError(
                f"{where} for {encoder} must be finite numbers, got some that are not; "
                "train it again with a lower learning rate, or choose another file"
            )
    sizes = {encoder: tuple(rows.shape[:2]) for encoder, rows in embeddings.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{where} must have as many words and layers in every text encoder, got "
            f"{', '.join(f'{shape} for {encoder}' for encoder, shape in sizes.items())}; "
            "choose another file"
        )


def named_once(concepts: Iterable[Concept]) -> dict[str, Concept]:
    """Return concepts by the key of their name.

    Raises:
        ValueError: Two concepts have the same name, which is ambiguous in prompts.
    """
    found: dict[str, Concept] = {}
    for concept in concepts:
        key = name_key(concept.name)
        if key in found:
            raise ValueError(
                f"every concept must have a name of its own, got <{concept.name}> twice; connect "
                "it once, or give one of them another name where it is loaded or trained"
            )
        found[key] = concept
    return found
