"""What the trainer of a half is asked for, checked, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops import PartlyLearnable, basis_digest
from ...lora_ops.halves import Part, Role
from ...lora_ops.parametrizations.partly_learnable import Start, check_rank
from ...training import Family, TrainingConfig, TrainingSettings
from ...training.files.half import HalfMetadata
from ...training.gates import Site
from ..bridge.conditioning import require_clip
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture
from ..text.encoder_layers import TextTraining, text_training
from ..trainer.request import resolved_config
from ..trainer.target_layers import trained_sites
from .half_pictures import half_pictures

LONGEST_QUOTE = 80
"""Of a prompt in a message."""


@dataclass(frozen=True)
class HalfRequest:
    """The node's inputs; 0 for steps, rank, learning rate and partner rate is the default.

    Args:
        model: The base.
        clip: Encodes the prompts.
        vae: Encodes the pictures.
        role: ``content`` or ``style``.
        images: The main pictures.
        prompts: One for all of them or one each.
        token: The word in the prompts that calls the half up; may be empty.
        auxiliary_images: Other styles for a content, other contents for a style; where there are
            none they are drawn from their prompts.
        auxiliary_prompts: One per auxiliary picture, or one for all.
        steps: Training steps.
        rank: Of the adapter.
        learning_rate: Of the owned part.
        seed: Of every draw, auxiliary pictures included.
        run_name: Of the run's folder.
        partner_rate: What multiplies the partner's learning rate.
        gradients: ``isolated`` or ``leaky``.
        start: Of ``PartlyLearnable``.
        content_owns: The part that contents own.
        basis_seed: Of the frozen halves.
        settings: Of the user.
        node_id: Of the node in the graph.
        prefix: Of the node's inputs for pictures and prompt, for messages.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    role: Role
    images: Sequence[Tensor]
    prompts: Sequence[str]
    token: str
    auxiliary_images: Sequence[Tensor]
    auxiliary_prompts: Sequence[str]
    steps: int
    rank: int
    learning_rate: float
    seed: int
    run_name: str
    partner_rate: float = 0.0
    gradients: str = "isolated"
    start: Start = "orthogonal"
    content_owns: Part = "down"
    basis_seed: int = 0
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None
    prefix: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of the node's inputs for pictures and prompt."""
        return f"{self.prefix}images", f"{self.prefix}prompt"


@dataclass(frozen=True)
class HalfPlan:
    """A request with every default resolved and every argument checked.

    Args:
        family: Of the base.
        config: Of the training loop.
        resolution: Side of the square whose area large pictures are brought to.
        partner_rate: What multiplies the partner's learning rate.
        projections: The adapter.
        facts: What the half will say of itself.
        pictures: The main ones.
        auxiliary: The auxiliary ones; none where they are to be drawn.
        drawn: Prompts of the auxiliary pictures that are to be drawn.
        text: The text encoder, where it is trained too.
    """

    family: Family
    config: TrainingConfig
    resolution: int
    partner_rate: float
    projections: PartlyLearnable
    facts: HalfMetadata
    pictures: list[Picture]
    auxiliary: list[Picture]
    drawn: list[str]
    text: TextTraining | None

    @property
    def prompts(self) -> list[str]:
        """Return every prompt of the main pictures once, in order."""
        return list(dict.fromkeys(picture.caption for picture in self.pictures))


def plan_half(request: HalfRequest) -> HalfPlan:
    """Return the plan of a request.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
    """
    family = identify_for_training(request.model)
    require_clip(request.clip)
    settings, defaults = request.settings, family.half
    config = resolved_config(request, defaults, timesteps="uniform")
    text = text_training(request.clip, settings, config)
    sites = trained_sites(request.model, settings, text)
    _require_room(config.rank, request.start, sites)
    resolution = settings.resolution or family.resolution
    size = (resolution, family.multiple)
    pictures = half_pictures(request.images, request.prompts, *size, request.names)
    token = request.token.strip()
    _require_prompts(request, pictures, token)
    auxiliary, drawn = _auxiliary(request, resolution, family.multiple)
    projections = PartlyLearnable(request.basis_seed, request.start)
    shapes = {name: site.shape for name, site in sites.items()}
    basis = basis_digest(shapes, config.rank, request.basis_seed, request.start)
    return HalfPlan(
        family=family,
        config=config,
        resolution=resolution,
        partner_rate=request.partner_rate or defaults.partner_rate,
        projections=projections,
        facts=HalfMetadata(request.role, basis, request.content_owns, token),
        pictures=pictures,
        auxiliary=auxiliary,
        drawn=drawn,
        text=text,
    )


def run_pieces(request: HalfRequest, plan: HalfPlan) -> dict[str, Any]:
    """Return what decides the half, piece by piece; the number of steps is none of it."""
    prompts = [picture.caption for picture in (*plan.pictures, *plan.auxiliary)] + plan.drawn
    pieces: dict[str, Any] = {
        "method": "b4m",
        "half": plan.facts.as_metadata(),
        "pictures": [content_digest(picture.image) for picture in plan.pictures],
        "auxiliary": [content_digest(picture.image) for picture in plan.auxiliary],
        "drawn": len(plan.drawn),
        "prompts": prompts,
        "tokens": [content_digest(request.clip.tokenize(prompt)) for prompt in prompts],
        "settings": {
            **request.settings.identity_fields(),
            "rank": plan.config.rank,
            "learning_rate": plan.config.learning_rate,
            "weight_decay": plan.config.weight_decay,
            "partner_rate": plan.partner_rate,
            "gradients": request.gradients,
            "resolution": plan.resolution,
        },
        "seed": request.seed,
        "model": model_digest(request.model),
        "clip": clip_digest(request.clip),
        "vae": vae_digest(request.vae),
    }
    return pieces


def _require_room(rank: int, start: Start, sites: Mapping[str, Site]) -> None:
    """Check, before anything is encoded, that half of every layer holds the rank."""
    for name, site in sites.items():
        try:
            check_rank(site.shape, rank, start)
        except ValueError as error:
            raise ValueError(f"{error} (at layer {name})") from error


def _require_prompts(request: HalfRequest, pictures: Sequence[Picture], token: str) -> None:
    images, prompt = request.names
    if not pictures:
        raise ValueError(
            f"a {request.role} half needs at least one picture, got none; connect {images}"
        )
    bare = [str(picture.number) for picture in pictures if not picture.caption]
    if bare:
        raise ValueError(
            f"{prompt} must say what the pictures show, got none for picture {', '.join(bare)}; "
            'write for example "a photo of snq teddybear"'
        )
    without = [picture.caption for picture in pictures if token not in picture.caption]
    if without:
        raise ValueError(
            f"{prompt} must hold the token that calls the {request.role} up, got "
            f"{_shortened(without[0])!r} without {token!r}; write it into the prompt or leave the "
            "token empty"
        )


def _auxiliary(
    request: HalfRequest, resolution: int, multiple: int
) -> tuple[list[Picture], list[str]]:
    """Return the auxiliary pictures that were given, or the prompts to draw them from."""
    prompts = [prompt.strip() for prompt in request.auxiliary_prompts if prompt.strip()]
    given = single_images(request.auxiliary_images)
    if not given:
        return [], prompts
    if len(prompts) not in (1, len(given)):
        raise ValueError(
            "auxiliary_prompts must be one line for all auxiliary pictures or one for each, got "
            f"{len(prompts)} for {len(given)} pictures; write what each of them shows"
        )
    names = ("auxiliary_images", "auxiliary_prompts")
    return half_pictures(request.auxiliary_images, prompts, resolution, multiple, names), []


def _shortened(text: str) -> str:
    """Return a text for a message, cut where it is long."""
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"
