"""What the concept trainer is asked for, checked, with every default resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import Family, TrainingConfig, TrainingSettings
from ...training.concept_captions import TEMPLATES, captions_without_name, with_name, wordings
from ...training.optimizers.by_name import PRECONDITIONED
from ..bridge.conditioning import require_clip
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.crops import CROPS
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of
from ..text.encoder_layers import TRAINABLE, TextTraining
from ..text.layer_contexts import context_layers
from ..trainer.request import resolved_config
from ..trainer.target_layers import text_readers, training_sites
from .words import STARTS, checked_words, encoders_without_lora, require_gradients

LEARNT = ("words, text encoder and denoiser", "words and denoiser", "words only")
RELEASED_STOP = 1.45
"""The released code stops at a norm of 0.55, where a row of CLIP-L's vocabulary has about 0.38."""


@dataclass(frozen=True)
class ConceptRequest:
    """The train node's inputs; 0 for steps, rank and the learning rates is the default.

    Args:
        model: The base.
        clip: Its text encoder.
        vae: Encodes the pictures.
        images: IMAGE batches.
        name: The word that calls the concept up, with or without its brackets.
        class_word: What kind of thing it is, one word.
        captions: One for all pictures or one each; empty ones are the name alone.
        steps: Training steps.
        rank: Of the LoRA.
        word_rate: Learning rate of the words' rows, for CLIP-L; where a vocabulary's rows are longer,
            steps are as much longer.
        text_rate: Of the LoRA in the text encoder; 0 is the settings', or the default.
        learning_rate: Of the LoRA in the denoiser.
        seed: Of every draw.
        run_name: Of the run's folder.
        masks: MASK batches, one per picture, or none.
        templates: One of ``TEMPLATES``.
        learnt: One of ``LEARNT``.
        decay: ``linear`` lets all rates fall to nothing; ``as set`` leaves it to the settings.
        noise_offset: Share of noise that is constant over a channel.
        attention: Weight of the attention regulariser, in the released code's measure.
        fill_mask: Whether the class word's attention must also fill the mask.
        stop: Norm of the rows, in the vocabulary's, at which they stay; 0 is never.
        start: One of ``STARTS``.
        down_start: Of ``Plain``.
        crops: One of ``CROPS``.
        density: Weight of what draws the words to their vocabulary, in the released code's measure.
        dropout: Share of the steps in which a layer that reads the text goes without the LoRA.
        settings: Of the user.
        node_id: Of the node in the graph.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    images: Sequence[Tensor]
    name: str
    class_word: str
    captions: Sequence[str]
    steps: int
    rank: int
    word_rate: float
    text_rate: float
    learning_rate: float
    seed: int
    run_name: str
    masks: Sequence[Tensor] = ()
    templates: str = "object"
    learnt: str = LEARNT[0]
    decay: str = "linear"
    noise_offset: float = 0.01
    attention: float = 0.01
    fill_mask: bool = False
    stop: float = RELEASED_STOP
    start: str = STARTS[0]
    down_start: str = "uniform"
    crops: str = CROPS[0]
    density: float = 0.0
    dropout: float = 0.0
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None


@dataclass(frozen=True)
class ConceptPlan:
    """A request with every default resolved and every argument checked.

    Args:
        family: Of the base.
        config: Of the training loop.
        settings: Of the user, with the concept's decay and noise offset.
        name: Without brackets.
        class_word: One token.
        layers: Of the denoiser that read the text apart; 1 where all read the same.
        word_rate: Learning rate of the rows.
        text: The text encoder and its rate.
        denoiser_rate: What multiplies the learning rate of the denoiser's LoRA: 1 or 0.
        resolution: Side of the square whose area large pictures are brought to.
        pictures: With their captions, the name in each.
        captions: Every picture's wordings.
        unnamed: Numbers of the pictures whose captions lacked the name.
        untrained: Text encoders whose layers stay as they are.
        dropped: Layers that may go without the LoRA in a step.
    """

    family: Family
    config: TrainingConfig
    settings: TrainingSettings
    name: str
    class_word: str
    layers: int
    word_rate: float
    text: TextTraining
    denoiser_rate: float
    resolution: int
    pictures: list[Picture]
    captions: list[list[str]]
    unnamed: list[int]
    untrained: list[str]
    dropped: list[str]

    @property
    def text_rate(self) -> float:
        """Return the learning rate of the LoRA in the text encoder."""
        return self.text.rate * self.config.learning_rate


def plan_concept(request: ConceptRequest) -> ConceptPlan:
    """Return the plan of a request.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
    """
    family = identify_for_training(request.model)
    require_clip(request.clip)
    name, class_word = checked_words(request.clip, request.name, request.class_word)
    require_gradients(request.clip)
    _require_single_optimizer(request.settings)
    settings = replace(request.settings, noise_offset=request.noise_offset)
    if request.decay == "linear":
        settings = replace(settings, schedule="linear")
    defaults = family.concept
    config = resolved_config(
        request=replace(request, settings=settings),
        defaults=defaults,
        timesteps=family.plain.timesteps,
    )
    resolution = request.settings.resolution or family.plain.resolution
    pictures = _pictures(request, resolution, family.multiple)
    named = [replace(one, caption=with_name(one.caption, name)) for one in pictures]
    text_rate = text_rate_of(request, defaults.text_rate)
    dropped = _dropped(request, family) if request.dropout else []
    return ConceptPlan(
        family=family,
        config=config,
        settings=settings,
        name=name,
        class_word=class_word,
        layers=context_layers(request.model),
        word_rate=request.word_rate or defaults.word_rate,
        text=TextTraining(request.clip, text_rate / config.learning_rate),
        denoiser_rate=float(request.learnt != "words only"),
        resolution=resolution,
        pictures=named,
        captions=[
            wordings(one.caption, request.templates, request.seed, one.number) for one in named
        ],
        unnamed=captions_without_name([one.caption for one in pictures], name),
        untrained=encoders_without_lora(request.clip, TRAINABLE if text_rate else ()),
        dropped=dropped,
    )


def run_pieces(request: ConceptRequest, plan: ConceptPlan) -> dict[str, Any]:
    """Return what decides the concept, piece by piece; the number of steps is none of it.

    The captions' tokens are a piece because they hold the embeddings that a caption names.
    """
    texts = list(dict.fromkeys(text for texts in plan.captions for text in texts))
    bare = [text.replace(f"<{plan.name}>", plan.name) for text in texts]
    pieces: dict[str, Any] = {
        "method": "concept",
        "name": plan.name,
        "class_word": plan.class_word,
        "learnt": {
            "what": request.learnt,
            "layers": plan.layers,
            "stop": request.stop,
            "start": request.start,
            "down_start": request.down_start,
        },
        "pictures": [content_digest(picture.image) for picture in plan.pictures],
        "captions": plan.captions,
        "tokens": [content_digest(request.clip.tokenize(text)) for text in bare],
        "settings": {
            **plan.settings.identity_fields(),
            "rank": plan.config.rank,
            "learning_rate": plan.config.learning_rate,
            "text_rate": plan.text_rate,
            "word_rate": plan.word_rate,
            "weight_decay": plan.config.weight_decay,
            "timesteps": plan.config.timesteps,
            "resolution": plan.resolution,
        },
        "seed": request.seed,
        "model": model_digest(request.model),
        "clip": clip_digest(request.clip),
        "vae": vae_digest(request.vae),
    }
    if any(picture.mask is not None for picture in plan.pictures):
        pieces["masks"] = [content_digest(picture.mask) for picture in plan.pictures]
        pieces["attention"] = [request.attention, request.fill_mask]
    # Runs from before these settings keep their place.
    if request.crops != CROPS[0]:
        pieces["crops"] = request.crops
    if request.density:
        pieces["density"] = request.density
    if request.dropout:
        pieces["dropout"] = [request.dropout, plan.dropped]
    return pieces


def _pictures(request: ConceptRequest, resolution: int, multiple: int) -> list[Picture]:
    if not single_images(request.images):
        raise ValueError("a concept needs at least one picture, got none; connect images")
    if request.templates not in TEMPLATES:
        raise ValueError(
            f"templates must be one of {', '.join(TEMPLATES)}, got {request.templates!r}"
        )
    if request.crops not in CROPS:
        raise ValueError(
            f"crops must be one of {', '.join(CROPS)}, got {request.crops!r}; choose one of them"
        )
    captions = list(request.captions) or [""]
    return pictures_of(request.images, request.masks, captions, resolution, multiple)


def text_rate_of(request: ConceptRequest, default: float) -> float:
    """Return the learning rate of the LoRA in the text encoder, 0 where there is none.

    Raises:
        ValueError: A rate is asked for where no text encoder can be trained.
    """
    if request.learnt != LEARNT[0]:
        return 0.0
    untrained = encoders_without_lora(request.clip, TRAINABLE)
    if set(untrained) != set(encoders_without_lora(request.clip, ())):
        return request.text_rate or request.settings.text_encoder_rate or default
    if request.text_rate:
        raise ValueError(
            f"text_rate is for {' and '.join(TRAINABLE)}, got {request.text_rate:g} for a base "
            f"that reads its text with {', '.join(untrained)}; set it to 0"
        )
    return 0.0


def _dropped(request: ConceptRequest, family: Family) -> list[str]:
    settings = request.settings
    sites = training_sites(request.model, settings.targets, settings.target_pattern)
    dropped = text_readers(sites, family)
    if not dropped:
        raise ValueError(
            "text_dropout is for layers that read the text alone, the keys and values of "
            f"cross-attention, got {request.dropout:g} where none is trained; set it to 0"
        )
    return dropped


def _require_single_optimizer(settings: TrainingSettings) -> None:
    if settings.optimizer in PRECONDITIONED:
        raise ValueError(
            "optimizer must be one that looks at every number alone where words are learnt, got "
            f"{settings.optimizer}; choose AdamW, Adafactor or SGD in Training Settings"
        )
