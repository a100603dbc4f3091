"""Captions of a concept's pictures: insert the name into the user's captions and into templates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .files.concept import name_key
from .randomness import generator_for

OBJECT = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a close-up of {}",
    "a clear photo of {}",
    "a cropped photo of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "{} in the picture",
    "a rendering of {}",
)
PERSON = (
    "a photo of {}",
    "a picture of {}",
    "a portrait of {}",
    "a close-up of {}",
    "a clear photo of {}",
    "a snapshot of {}",
    "a bright photo of {}",
    "a dark photo of {}",
    "{} in the picture",
    "a candid photo of {}",
)
# Sentences around a caption, by the name of the user's choice; one of them is drawn at random.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "as written": ("{}",),
    "object": OBJECT,
    "person": PERSON,
}

WORDINGS = 12  # wordings per picture, which differ in the order of the caption's parts and template


def names_concept(caption: str, name: str) -> bool:
    """Return whether a caption contains ``<name>``, in upper or lower case."""
    return f"<{name_key(name)}>" in name_key(caption)


def with_name(caption: str, name: str) -> str:
    """Return the caption with ``<name>``, which is put in front if it is missing."""
    if names_concept(caption, name):
        return caption
    return f"<{name}>, {caption}" if caption else f"<{name}>"


def wordings(caption: str, kind: str, seed: int, picture: int) -> list[str]:
    """Return distinct random wordings of a picture's caption.

    The parts between commas, except the first, are shuffled, and a template is put around them.

    Args:
        caption: Caption with the concept's name.
        kind: One of ``TEMPLATES``.
        seed: Seed of the run.
        picture: Number of the picture.

    Reference: Gu et al. 2023, arXiv:2305.18292, released code.
    """
    templates = TEMPLATES[kind]
    first, *rest = (part.strip() for part in caption.split(","))
    if len(rest) < 2 and len(templates) == 1:
        return [templates[0].format(caption)]
    found = []
    for number in range(max(WORDINGS, len(templates))):
        generator = generator_for(seed, "caption", picture, number)
        order = torch.randperm(len(rest), generator=generator).tolist()
        text = ", ".join([first, *(rest[place] for place in order)])
        found.append(templates[number % len(templates)].format(text))
    return list(dict.fromkeys(found))


def captions_without_name(captions: Sequence[str], name: str) -> list[int]:
    """Return the numbers, counted from 1, of captions without the name."""
    return [
        number
        for number, caption in enumerate(captions, start=1)
        if caption and not names_concept(caption, name)
    ]
