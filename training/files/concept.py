"""A concept: what a trained person, object or place is, and all of it that is passed on."""

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

TEXT_WIDTHS: dict[str, int] = {
    **{"clip_l": 768, "clip_g": 1280, "clip_h": 1024},
    **{"t5xxl": 4096, "umt5xxl": 4096},
}
"""Width of a token's row by text encoder, under ComfyUI's names: those that concepts can use."""

_LONGEST_NAME = 64
_UNWRITABLE = "<>()[]{}:,;|\\\"'`/*?"
"""Characters that would end a name, weight it or mean something else in a prompt."""


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept, for any prompt.

    Its name stands for several words in a row: in ED-LoRA two, a new one and one that started
    from a class word. Each has one row of numbers per layer of the denoiser that reads the text,
    or a single row that all layers share. An ordinary LoRA that is fused has no words of its own:
    no embeddings, but prompts that call it up.

    Args:
        name: The word that users write as ``<name>``.
        class_words: What kind of thing it is, such as ``dog``; may be empty.
        embeddings: ``(word, layer, dim)`` by text encoder; finite, fp32 on the CPU. Empty for one
            without words.
        lora: Its changes to denoiser and text encoder; may be empty.
        prompts: What gradient fusion samples with.
        images: ``(batch, height, width, 3)`` of it, for gradient fusion; or None.
        strength: Multiplies the LoRA.
        weight: Of this concept among those that are fused.

    Raises:
        ValueError: The name can't be written in a prompt, or the embeddings are no good.

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
        """Refuse what no prompt could use."""
        object.__setattr__(self, "name", concept_name(self.name))
        if self.embeddings or not self.prompts:
            check_embeddings(self.embeddings, self.name)

    @property
    def words(self) -> int:
        """How many words in a row the name stands for; 0 for an ordinary LoRA."""
        return next((rows.shape[0] for rows in self.embeddings.values()), 0)

    @property
    def layers(self) -> int:
        """How many rows each word has: one per layer, or 1."""
        return next((rows.shape[1] for rows in self.embeddings.values()), 1)

    @property
    def family(self) -> Family | None:
        """The family of base models it was made for; None if its LoRA does not say."""
        return family_of(metadata_of(self.lora))

    @property
    def digest(self) -> str:
        """What the words are, in short: the same before it is saved and after it is loaded."""
        digest = hashlib.sha256(name_key(self.name).encode())
        for encoder, rows in sorted(self.embeddings.items()):
            digest.update(f"{encoder} {tuple(rows.shape)}".encode())
            digest.update(stored_rows(rows).numpy().tobytes())
        return digest.hexdigest()[:16]

    def mean_rows(self) -> dict[str, Tensor]:
        """Return each word's mean over the layers, ``(word, dim)`` by text encoder."""
        return {encoder: rows.float().mean(dim=1) for encoder, rows in self.embeddings.items()}


def concept_name(text: str) -> str:
    """Return a concept's name without the brackets that prompts write around it.

    Raises:
        ValueError: A prompt could not hold it.
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
    """Return what two spellings of the same name share: prompts don't tell upper from lower case."""
    return unicodedata.normalize("NFC", name).casefold()


def stored_rows(rows: Tensor) -> Tensor:
    """Return embeddings as files and digests hold them: fp16, on the CPU, contiguous."""
    return rows.detach().to("cpu", torch.float16).contiguous()


def check_embeddings(embeddings: Mapping[str, Tensor], name: str) -> None:
    """Refuse embeddings of wrong shapes or of numbers that a file can't hold.

    Args:
        embeddings: ``(word, layer, dim)`` by text encoder.
        name: Of the concept, for the message.

    Raises:
        ValueError: They are no good; the message says where.
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
        ValueError: Two have the same name: a prompt could not tell them apart.
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
