"""What the pair trainer is asked for, checked, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training import Family, TrainingConfig, TrainingSettings
from ...training.gates import Site
from ..bridge.conditioning import require_clip
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.fitted_image import single_images
from ..text.encoder_layers import TextTraining, text_training
from ..trainer.request import resolved_config
from ..trainer.target_layers import trained_sites
from .frames import FittedPair, fit_pairs


@dataclass(frozen=True)
class PairRequest:
    """The train node's inputs; 0 for steps, rank and learning rate is the family's default."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    before: Sequence[Tensor]
    after: Sequence[Tensor]
    content_prompts: Sequence[str]
    style_words: str
    steps: int
    rank: int
    learning_rate: float
    seed: int
    run_name: str
    style_start: float
    packing: str
    settings: TrainingSettings
    node_id: str | None = None


@dataclass(frozen=True)
class PairPlan:
    """A request with every default resolved and every argument checked.

    Args:
        family: Of the base.
        config: Of the training loop.
        style_start_step: First step, from 0, that learns the style.
        resolution: Shorter side in pixels at most.
        pairs: Every pair on its frame.
        content_prompts: One per pair.
        style_words: What follows a content prompt to name the style.
        text: The text encoder, where it is trained too.
    """

    family: Family
    config: TrainingConfig
    style_start_step: int
    resolution: int
    pairs: list[FittedPair]
    content_prompts: list[str]
    style_words: str
    text: TextTraining | None

    @property
    def style_prompts(self) -> list[str]:
        """Return every content prompt followed by the style words."""
        return [f"{prompt} {self.style_words}" for prompt in self.content_prompts]


def plan_pair(request: PairRequest) -> PairPlan:
    """Return the plan of a request.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
    """
    family = identify_for_training(request.model)
    require_clip(request.clip)
    settings, defaults = request.settings, family.pair
    config = resolved_config(request, defaults, packing=request.packing)
    style_start_step = round(request.style_start * config.steps)
    if not 0 <= style_start_step < config.steps:
        raise ValueError(
            "style_start must leave at least one step for the style, got "
            f"{request.style_start:g} of {config.steps} steps; lower style_start or raise steps"
        )
    words = request.style_words.strip()
    if not words:
        raise ValueError(
            "style_words must name the style, got an empty text; "
            'write for example "in digital art style"'
        )
    text = text_training(request.clip, settings, config)
    _require_narrow(config.rank, trained_sites(request.model, settings, text))
    resolution = settings.resolution or family.resolution
    pairs = fit_pairs(request.before, request.after, resolution, family.multiple)
    prompts = _prompts(request.content_prompts, len(pairs))
    return PairPlan(family, config, style_start_step, resolution, pairs, prompts, words, text)


def run_pieces(request: PairRequest, plan: PairPlan) -> dict[str, Any]:
    """Return what decides the run's result, piece by piece; the number of steps is none of it.

    ``style_start`` is a piece as a share; its step lies beside the result. The prompts' tokens
    are a piece because they hold the embeddings that a prompt names.
    """
    settings = {
        **request.settings.identity_fields(),
        "rank": plan.config.rank,
        "learning_rate": plan.config.learning_rate,
        "weight_decay": plan.config.weight_decay,
        "packing": plan.config.packing,
        "resolution": plan.resolution,
        "style_start": request.style_start,
        "basis_seed": plan.family.pair.basis_seed,
    }
    prompts = [*plan.content_prompts, *plan.style_prompts]
    return {
        "method": "pair",
        "before": [content_digest(image) for image in single_images(request.before)],
        "after": [content_digest(image) for image in single_images(request.after)],
        "prompts": prompts,
        "tokens": [content_digest(request.clip.tokenize(prompt)) for prompt in prompts],
        "settings": settings,
        "seed": request.seed,
        "model": model_digest(request.model),
        "clip": clip_digest(request.clip),
        "vae": vae_digest(request.vae),
    }


def _require_narrow(rank: int, sites: Mapping[str, Site]) -> None:
    """Check, before anything is encoded, that both bases fit every layer to train."""
    name, narrowest = min(sites.items(), key=lambda entry: entry[1].shape[1])
    width = narrowest.shape[1]
    if 2 * rank > width:
        raise ValueError(
            "content and style rows must fit the narrowest layer together, "
            f"got 2 x rank {rank} for width {width} of {name}; set rank to {width // 2} or less"
        )


def _prompts(prompts: Sequence[str], pairs: int) -> list[str]:
    """Return one prompt per pair."""
    if len(prompts) not in (1, pairs):
        raise ValueError(
            "content_prompt must be one prompt or one per pair, got "
            f"{len(prompts)} prompts for {pairs} pairs; give one for all or one for each"
        )
    stripped = [prompt.strip() for prompt in prompts]
    if not all(stripped):
        raise ValueError(
            "content_prompt must describe the picture before, got an empty text; "
            'write for example "a photo of a dog"'
        )
    return stripped * pairs if len(stripped) == 1 else stripped
