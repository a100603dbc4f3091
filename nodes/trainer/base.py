"""The base model of a run, with values that are computed from it once and then cached."""

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
from .target_layers import TrainableLayer, trainable_layers

Caption = Conditioning | TokenizedCaption  # the latter is encoded again in every step


@dataclass(frozen=True, eq=False)
class Base:
    """MODEL, CLIP and VAE of a run, which are never changed.

    Properties are computed at their first use. Captions and pictures are encoded only once, also if
    several stages share the base.

    Args:
        model: Model that is trained on.
        clip: Text encoder of the model.
        vae: VAE of the model.
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
            ValueError: The model can't be trained.
        """
        return identify_for_training(self.model)

    @cached_property
    def layers(self) -> Mapping[str, TrainableLayer]:
        """Return all layers of the model that can be trained, by their names in LoRA files."""
        return trainable_layers(self.model, self.family)

    @cached_property
    def model_digest(self) -> dict[str, str]:
        """Return the digests of the model."""
        return model_digest(self.model)

    @cached_property
    def clip_digest(self) -> dict[str, str]:
        """Return the digests of the text encoder."""
        return clip_digest(self.clip)

    @cached_property
    def vae_digest(self) -> dict[str, str]:
        """Return the digests of the VAE."""
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
        """Return a picture's latent in the form the model is trained on, ``(channel, ...)``.

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
        """Raise unless there is a text encoder.

        Raises:
            ValueError: The CLIP is missing.
        """
        require_clip(self.clip)
