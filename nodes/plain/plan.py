"""What the plain LoRA trainer is asked for, checked, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import Family, TrainingConfig, TrainingSettings
from ..bridge.conditioning import Conditioning, require_clip
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of
from ..text.encoder_layers import TextTraining, text_training
from ..text.training_cond import training_cond
from ..trainer.request import resolved_config
from .encoded_dataset import EncodedPicture, encoded_pictures


@dataclass(frozen=True)
class PlainRequest:
    """The train node's inputs; 0 for steps, rank and learning rate is the family's default.

    Pictures come as ``images`` or, encoded, as ``latents`` and ``conditioning``.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    captions: Sequence[str]
    steps: int
    rank: int
    learning_rate: float
    seed: int
    run_name: str
    images: Sequence[Tensor] = ()
    masks: Sequence[Tensor] = ()
    latents: Sequence[Mapping[str, Any]] = ()
    conditioning: Sequence[Conditioning] = ()
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None


@dataclass(frozen=True)
class PlainPlan:
    """A request with every default resolved and every argument checked.

    Args:
        family: Of the base.
        config: Of the training loop.
        resolution: Side of the square whose area large pictures are brought to.
        pictures: To be encoded; none where they come encoded.
        encoded: Pictures of core's training datasets.
        text: The text encoder, where it is trained too.
    """

    family: Family
    config: TrainingConfig
    resolution: int
    pictures: list[Picture]
    encoded: list[EncodedPicture]
    text: TextTraining | None

    @property
    def captions(self) -> list[str]:
        """Return every caption once, in order."""
        return list(dict.fromkeys(picture.caption for picture in self.pictures))


def plan_plain(request: PlainRequest) -> PlainPlan:
    """Return the plan of a request.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
    """
    family = identify_for_training(request.model)
    settings, defaults = request.settings, family.plain
    config = resolved_config(request, defaults, timesteps=defaults.timesteps)
    _require_one_source(request)
    resolution = settings.resolution or defaults.resolution
    pictures, encoded = [], []
    if not request.latents or settings.caption_dropout:
        require_clip(request.clip)
    if request.latents:
        encoded = encoded_pictures(request.model, request.latents, request.conditioning)
    else:
        pictures = pictures_of(
            request.images, request.masks, request.captions, resolution, family.multiple
        )
    text = text_training(request.clip, settings, config)
    return PlainPlan(family, config, resolution, pictures, encoded, text)


def _require_one_source(request: PlainRequest) -> None:
    pictures = single_images(request.images)
    if not pictures and not request.latents:
        raise ValueError(
            "training needs pictures, got none; connect images, or latents and conditioning "
            "from Make Training Dataset"
        )
    if pictures and request.latents:
        raise ValueError(
            "training takes pictures either as images or as latents, got both; disconnect one"
        )
    if bool(request.latents) != bool(request.conditioning):
        given, missing = (
            ("latents", "conditioning") if request.latents else ("conditioning", "latents")
        )
        raise ValueError(
            f"latents and conditioning must come together, got {given} without {missing}; "
            "connect both from the same node"
        )
    if request.latents and request.masks:
        raise ValueError(
            "masks belong to images, got masks with latents; connect the images instead"
        )
    if request.latents and request.settings.text_encoder_rate:
        raise ValueError(
            "a text encoder is trained on captions, got conditioning that is encoded already and "
            f"text_encoder_rate {request.settings.text_encoder_rate:g}; set it to 0 in Training "
            "Settings or connect the images instead"
        )
    if request.latents and request.settings.flip != "never":
        raise ValueError(
            f"latents can't be mirrored, got flip {request.settings.flip} with latents; "
            "set flip to never or connect the images instead"
        )


def run_pieces(request: PlainRequest, plan: PlainPlan) -> dict[str, Any]:
    """Return what decides the run's result, piece by piece; the number of steps is none of it.

    The captions' tokens are a piece because they hold the embeddings that a caption names. What
    encoded nothing is none: the VAE, and without caption dropout the text encoder, where latents
    and conditioning were given.
    """
    settings = request.settings
    pieces: dict[str, Any] = {
        "method": "plain",
        "settings": {
            **settings.identity_fields(),
            "rank": plan.config.rank,
            "learning_rate": plan.config.learning_rate,
            "weight_decay": plan.config.weight_decay,
            "timesteps": plan.config.timesteps,
        },
        "seed": request.seed,
        "model": model_digest(request.model),
    }
    if plan.encoded:
        pieces["latents"] = [content_digest(one.latent) for one in plan.encoded]
        pieces["conditioning"] = [content_digest(_read_of(request, one)) for one in plan.encoded]
    else:
        captions = [picture.caption for picture in plan.pictures]
        tokens = {text: content_digest(request.clip.tokenize(text)) for text in plan.captions}
        pieces["pictures"] = [content_digest(picture.image) for picture in plan.pictures]
        pieces["captions"] = captions
        pieces["tokens"] = [tokens[text] for text in captions]
        if any(picture.mask is not None for picture in plan.pictures):
            pieces["masks"] = [content_digest(picture.mask) for picture in plan.pictures]
        pieces["settings"]["resolution"] = plan.resolution
        pieces["vae"] = vae_digest(request.vae)
    if plan.pictures or settings.caption_dropout:
        pieces["clip"] = clip_digest(request.clip)
    return pieces


def _read_of(request: PlainRequest, picture: EncodedPicture) -> dict[str, Any]:
    """Return what the model reads of a caption: SD1.5's holds a vector of no meaning beside it."""
    cond = training_cond(request.model, picture.conditioning, picture.latent[0])
    return {name: value.cond for name, value in cond.model_conds.items()}
