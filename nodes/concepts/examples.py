"""Make training examples of a concept's pictures, with captions that are encoded in every step."""

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
from .words import WORDS_PER_CONCEPT


@dataclass(frozen=True)
class CaptionEncoder:
    """An encoder of captions that may contain the concept's name.

    Args:
        base: The base model; it need not be loaded.
        name: Name of the concept.
        layers: Number of contexts that the denoiser reads.
        watch_attention: Whether the attention to the words is recorded.
    """

    base: Base
    name: str
    layers: int
    watch_attention: bool = False

    def cond(self, text: str, latent: Tensor, framing: Framing | None = None) -> LiveCaption:
        """Return a caption that is encoded in every step with the present embeddings.

        Args:
            text: The caption.
            latent: ``(channel, ...)`` latent of the picture; only its shape is used.
            framing: Original size and crop for SDXL; other models ignore it.

        Raises:
            ValueError: The caption names another concept.
        """
        key = name_key(self.name)
        prompt = bound_prompt(self.base.clip, text, {key: WORDS_PER_CONCEPT})
        contexts = self.layers if prompt.concept_keys else 1
        # SDXL's pooled vector is encoded with the words' mean embeddings.
        pooled = contexts > 1 and getattr(self.base.model.model, "adm_channels", 0) > 0

        def bind(learnt: Mapping[str, Tensor]) -> list[Tokens]:
            rows = {key: learnt}
            bound = [prompt.at(rows, layer) for layer in range(contexts)]
            return [*bound, prompt.at(rows, None)] if pooled else bound

        return LiveCaption(
            bind=bind,
            latent_shape=(1, *latent.shape),
            bindings=contexts,
            batch_key=batch_key(prompt.tokens),
            options=picture_options(framing),
            separate_pooled=pooled,
            watched_positions=(
                _word_positions(prompt) if self.watch_attention and contexts > 1 else ()
            ),
        )


def concept_examples(
    encoder: CaptionEncoder,
    pictures: Sequence[Iterable[Crop]],
    captions: Sequence[Sequence[str]],
    flip: str,
    with_empty: bool,
) -> list[list[list[Example]]]:
    """Return the examples of each picture with all its crops and captions, for every view.

    Args:
        encoder: Encoder of the captions; its base encodes the pictures.
        pictures: Pictures in order, each with all its crops.
        captions: Captions of every picture.
        flip: Whether pictures are also mirrored, one of ``VIEWS``.
        with_empty: Whether examples also get the empty caption, for caption dropout.

    Raises:
        ValueError: A crop contains nothing of the picture's mask.
        RuntimeError: The VAE returns NaN.
    """
    found: list[list[list[Example]]] = [[] for _ in VIEWS[flip]]
    for picture, texts in zip(pictures, captions, strict=True):
        for view in found:
            view.append([])
        for image, mask in picture:
            views = picture_views(encoder.base, image, flip, mask)
            for view, (latent, framing, weights) in zip(found, views, strict=True):
                empty = encoder.cond("", latent, framing) if with_empty else None
                view[-1] += [
                    Example(latent, encoder.cond(text, latent, framing), weights, empty)
                    for text in texts
                ]
    return found


def _word_positions(prompt: BoundPrompt) -> tuple[int, ...]:
    """Return the position of each word's first token in the context, in the order of the words."""
    sections = next(iter(prompt.tokens.values()))
    flat = [token for section in sections for token, _ in section]
    positions: dict[int, int] = {}
    for position, token in enumerate(flat):
        if is_marker(token):
            positions.setdefault(int(token[1]), position)
    return tuple(positions[word] for word in sorted(positions))
