"""The base that a run trains on, and all that is worked out of it once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...training import Family
from ..bridge.conditioning import Conditioning, encode_prompt, require_clip
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.fitted_image import FittedImage, encode_picture
from ..text.live_caption import TokenizedCaption
from ..text.training_cond import training_latent
from .target_layers import OfferedLayer, offered_layers

Caption = Conditioning | TokenizedCaption
"""A caption encoded once, or to be encoded in every step."""


@dataclass(frozen=True, eq=False)
class Base:
    """MODEL, CLIP and VAE, never changed, with what a run needs to know of them.

    Each property is worked out when it is first asked for, each caption and picture encoded once,
    for all stages that share the base.

    Args:
        model: The model that is trained on.
        clip: Its text encoder.
        vae: Its VAE.
    """

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    _captions: dict[str, Conditioning] = field(default_factory=dict, init=False, repr=False)
    _latents: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def family(self) -> Family:
        """Return the model's family.

        Raises:
            ValueError: It can't be trained.
        """
        return identify_for_training(self.model)

    @cached_property
    def layers(self) -> Mapping[str, OfferedLayer]:
        """Return all layers of the model that can be trained, by their names in a LoRA file."""
        return offered_layers(self.model, self.family)

    @cached_property
    def model_digest(self) -> dict[str, str]:
        """Return what the model is, for a run's id."""
        return model_digest(self.model)

    @cached_property
    def clip_digest(self) -> dict[str, str]:
        """Return what the text encoder is, for a run's id."""
        return clip_digest(self.clip)

    @cached_property
    def vae_digest(self) -> dict[str, str]:
        """Return what the VAE is, for a run's id."""
        return vae_digest(self.vae)

    def caption(self, text: str) -> Conditioning:
        """Return a caption's conditioning.

        Raises:
            ValueError: There is no text encoder.
        """
        if text not in self._captions:
            self._captions[text] = encode_prompt(self.clip, text)
        return self._captions[text]

    def latent(self, image: FittedImage, mirrored: bool) -> Tensor:
        """Return a picture's latent as the model trains on it, ``(channel, ...)``.

        Raises:
            RuntimeError: The VAE gives NaN.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        key = content_digest([image.pixels, mirrored])
        if key not in self._latents:
            encoded = encode_picture(self.vae, image, mirrored)
            self._latents[key] = training_latent(self.model, encoded)[0]
        return self._latents[key]

    def require_clip(self) -> None:
        """Check that there is a text encoder.

        Raises:
            ValueError: There is none.
        """
        require_clip(self.clip)
