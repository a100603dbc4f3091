"""A concept's pictures as rows of a training, their captions encoded anew in every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...training import Example
from ...training.files.concept import name_key
from ..pictures.crops import Crop
from ..text.concept_prompt import BoundPrompt, Tokens, bound_prompt, is_marker
from ..text.live_caption import LiveCaption, batch_key, picture_options
from ..text.training_cond import Framing
from ..trainer.base import Base
from ..trainer.examples import VIEWS, picture_views
from .words import WORDS


@dataclass(frozen=True)
class Reader:
    """Reads captions that may hold the concept's name.

    Args:
        base: The base; need not be loaded.
        name: Of the concept.
        layers: Of the denoiser that read the text apart.
        watch: Whether the attention to the words is watched.
    """

    base: Base
    name: str
    layers: int
    watch: bool = False

    def cond(self, text: str, latent: Tensor, framing: Framing | None = None) -> LiveCaption:
        """Return a caption that waits for what is learnt.

        Args:
            text: The caption.
            latent: ``(channel, ...)`` of the picture; only its shape is read.
            framing: True size and crop for SDXL; others ignore it.

        Raises:
            ValueError: It names another concept.
        """
        key = name_key(self.name)
        prompt = bound_prompt(self.base.clip, text, {key: WORDS})
        apart = self.layers if prompt.concept_keys else 1
        # SDXL's pooled vector is made of the words' mean rows.
        pooled = apart > 1 and getattr(self.base.model.model, "adm_channels", 0) > 0

        def bind(learnt: Mapping[str, Tensor]) -> list[Tokens]:
            rows = {key: learnt}
            bound = [prompt.at(rows, layer) for layer in range(apart)]
            return [*bound, prompt.at(rows, None)] if pooled else bound

        return LiveCaption(
            bind=bind,
            latent_shape=(1, *latent.shape),
            bindings=apart,
            batch_key=batch_key(prompt.tokens),
            options=picture_options(framing),
            separate_pooled=pooled,
            watched_positions=_places(prompt) if self.watch and apart > 1 else (),
        )


def concept_examples(
    reader: Reader,
    pictures: Sequence[Iterable[Crop]],
    captions: Sequence[Sequence[str]],
    flip: str,
    dropped: bool,
) -> list[list[list[Example]]]:
    """Return pictures in all their cuts and wordings, once for every view.

    Args:
        reader: Reads the captions and encodes the pictures.
        pictures: Pictures in order, each in all its cuts.
        captions: Every picture's wordings.
        flip: Whether pictures are mirrored, of ``VIEWS``.
        dropped: Whether captions may be left out.

    Raises:
        ValueError: All that a mask lets count is cut away.
        RuntimeError: The VAE gives NaN.
    """
    found: list[list[list[Example]]] = [[] for _ in VIEWS[flip]]
    for picture, texts in zip(pictures, captions, strict=True):
        for view in found:
            view.append([])
        for image, mask in picture:
            views = picture_views(reader.base, image, flip, mask)
            for view, (latent, framing, counts) in zip(found, views, strict=True):
                empty = reader.cond("", latent, framing) if dropped else None
                view[-1] += [
                    Example(latent, reader.cond(text, latent, framing), counts, empty)
                    for text in texts
                ]
    return found


def _places(prompt: BoundPrompt) -> tuple[int, ...]:
    """Return where the words' first rows stand in the context, in the order of the words."""
    sections = next(iter(prompt.tokens.values()))
    flat = [token for section in sections for token, _ in section]
    places: dict[int, int] = {}
    for place, token in enumerate(flat):
        if is_marker(token):
            places.setdefault(int(token[1]), place)
    return tuple(places[word] for word in sorted(places))
