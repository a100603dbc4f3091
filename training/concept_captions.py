"""Captions of a concept's pictures: its name set into what the user wrote, or into templates."""

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
TEMPLATES: dict[str, tuple[str, ...]] = {
    "as written": ("{}",),
    "object": OBJECT,
    "person": PERSON,
}
"""What is written around a caption: nothing, or one of several sentences at random."""

WORDINGS = 12
"""Of one picture: its caption's parts in other orders, in other templates."""


def names_concept(caption: str, name: str) -> bool:
    """Return whether a caption holds ``<name>``, in any case."""
    return f"<{name_key(name)}>" in name_key(caption)


def with_name(caption: str, name: str) -> str:
    """Return the caption with ``<name>``, put in front where it has none."""
    if names_concept(caption, name):
        return caption
    return f"<{name}>, {caption}" if caption else f"<{name}>"


def wordings(caption: str, kind: str, seed: int, picture: int) -> list[str]:
    """Return a picture's caption in several wordings, each once, drawn from the seed.

    The parts between commas change their order, the first one excepted; a template goes around
    them.

    Args:
        caption: With the concept's name.
        kind: One of ``TEMPLATES``.
        seed: Of the run.
        picture: Its number.

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
    """Return the numbers, from 1, of captions that were written without the name."""
    return [
        number
        for number, caption in enumerate(captions, start=1)
        if caption and not names_concept(caption, name)
    ]
