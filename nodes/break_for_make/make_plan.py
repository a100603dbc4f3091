"""What making one LoRA of two halves is asked for, checked, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops import LowRank
from ...lora_ops.halves import Part
from ...lora_ops.keys import changes_text_encoder
from ...training import Family, LoraState, TrainingConfig, TrainingSettings, metadata_of
from ...training.files.half import check_fit
from ...training.files.metadata import family_of
from ...training.settings import TARGETS
from ..bridge.digests import clip_digest, content_digest, model_digest, vae_digest
from ..bridge.families import identify_for_training
from ..pictures.picture import Picture
from ..text.encoder_layers import TextTraining, text_sites, text_training
from ..trainer.request import resolved_config
from ..trainer.target_layers import training_sites
from .half_pictures import half_pictures


@dataclass(frozen=True)
class MakeRequest:
    """The node's inputs; 0 for the learning rate is the family's default.

    Args:
        contents: Content halves.
        styles: Style halves.
        content_strength: Multiplies the content's owned part of the result.
        style_strength: Multiplies the style's owned part of the result.
        steps: Of the joint fine-tune; 0 is none.
        model: The base, for the fine-tune, and so are the next six.
        clip: Encodes the prompts.
        vae: Encodes the pictures.
        content_images: The content's pictures.
        content_prompts: One for all of them or one each.
        style_images: The style's pictures.
        style_prompts: One for all of them or one each.
        learning_rate: Of both learnt halves.
        seed: Of every draw.
        run_name: Of the run's folder.
        optimizer: Of the fine-tune, whatever the settings say.
        settings: Of the user.
        node_id: Of the node in the graph.
    """

    contents: Sequence[LoraState]
    styles: Sequence[LoraState]
    content_strength: float = 1.0
    style_strength: float = 1.0
    steps: int = 0
    model: ModelPatcher | None = None
    clip: comfy.sd.CLIP | None = None
    vae: comfy.sd.VAE | None = None
    content_images: Sequence[Tensor] = ()
    content_prompts: Sequence[str] = ("",)
    style_images: Sequence[Tensor] = ()
    style_prompts: Sequence[str] = ("",)
    learning_rate: float = 0.0
    seed: int = 0
    run_name: str = "my_lora"
    optimizer: str = "Scaled AdamW"
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None


@dataclass(frozen=True)
class MakePlan:
    """A fine-tune with every default resolved and every argument checked.

    Args:
        family: Of the base.
        config: Of the training loop.
        settings: Of the user, with the halves' layers and the chosen optimiser.
        resolution: Side of the square whose area large pictures are brought to.
        content_owns: The part that the content owns.
        joined: The halves as one, by layer name.
        contents: The content's pictures.
        styles: The style's pictures.
        text: The text encoder, where the halves have layers of it.
    """

    family: Family
    config: TrainingConfig
    settings: TrainingSettings
    resolution: int
    content_owns: Part
    joined: Mapping[str, LowRank]
    contents: list[Picture]
    styles: list[Picture]
    text: TextTraining | None


@dataclass(frozen=True)
class _Asked:
    """What ``resolved_config`` looks at: the rank is the halves'."""

    model: ModelPatcher
    steps: int
    rank: int
    learning_rate: float
    seed: int
    settings: TrainingSettings


def plan_make(request: MakeRequest, joined: Mapping[str, LowRank]) -> MakePlan:
    """Return the plan of a fine-tune of one content and one style half.

    Args:
        request: The node's inputs.
        joined: The halves as one.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
    """
    if len(request.contents) != 1 or len(request.styles) != 1:
        raise ValueError(
            "a fine-tune must be given one content and one style half, whose pictures it learns "
            f"from, got {len(request.contents)} and {len(request.styles)}; set steps to 0 or "
            "connect one of each"
        )
    missing = [name for name in ("model", "clip", "vae") if getattr(request, name) is None]
    if missing or request.model is None:
        raise ValueError(
            "a fine-tune needs the base, got none on "
            f"{', '.join(missing)}; connect {'it' if len(missing) == 1 else 'them'} or set steps "
            "to 0"
        )
    family = identify_for_training(request.model)
    _require_family(request, family)
    rank = next(iter(joined.values())).rank
    settings = replace(_on_layers(request, joined), optimizer=request.optimizer)
    asked = _Asked(
        request.model, request.steps, rank, request.learning_rate, request.seed, settings
    )
    resolution = settings.resolution or family.resolution
    config = resolved_config(asked, family.half)
    return MakePlan(
        family=family,
        config=config,
        settings=settings,
        resolution=resolution,
        content_owns=check_fit(request.contents[0], request.styles[0]),
        joined=joined,
        contents=_pictures(
            "content", request.content_images, request.content_prompts, resolution, family
        ),
        styles=_pictures("style", request.style_images, request.style_prompts, resolution, family),
        text=text_training(request.clip, settings, config),
    )


def run_pieces(request: MakeRequest, plan: MakePlan) -> dict[str, Any]:
    """Return what decides the run's result, piece by piece; strengths act on the result alone."""
    pictures = [*plan.contents, *plan.styles]
    prompts = [picture.caption for picture in pictures]
    clip = request.clip
    return {
        "method": "make",
        "content": content_digest(dict(request.contents[0])),
        "style": content_digest(dict(request.styles[0])),
        "contents": len(plan.contents),
        "pictures": [content_digest(picture.image) for picture in pictures],
        "prompts": prompts,
        "tokens": [content_digest(clip.tokenize(prompt)) for prompt in prompts],
        "settings": {
            **plan.settings.identity_fields(),
            "learning_rate": plan.config.learning_rate,
            "weight_decay": plan.config.weight_decay,
            "resolution": plan.resolution,
        },
        "seed": request.seed,
        "model": model_digest(request.model),
        "clip": clip_digest(clip),
        "vae": vae_digest(request.vae),
    }


def _pictures(
    role: str, images: Sequence[Tensor], prompts: Sequence[str], resolution: int, family: Family
) -> list[Picture]:
    names = (f"{role}_images", f"{role}_prompt")
    pictures = half_pictures(images, prompts, resolution, family.multiple, names)
    if not pictures:
        raise ValueError(
            f"a fine-tune needs pictures of the {role}, got none; connect {role}_images or set "
            "steps to 0"
        )
    if not all(picture.caption for picture in pictures):
        raise ValueError(
            f"{role}_prompt must say what the {role}'s pictures show, got an empty text; write "
            "the prompt that the half was trained with"
        )
    return pictures


def _require_family(request: MakeRequest, family: Family) -> None:
    """Refuse halves that say that they were made for another base."""
    said = family_of(metadata_of(request.contents[0]))
    if said is not None and said != family:
        raise ValueError(
            f"the halves must fit the model, got {said.name} halves and a {family.name} model; "
            "choose halves of this base"
        )


def _on_layers(request: MakeRequest, joined: Mapping[str, LowRank]) -> TrainingSettings:
    """Return the settings with the target layers that the halves have.

    Raises:
        ValueError: The base has not all of these layers in these shapes, or the settings train the
            text encoder where the halves leave it, or the other way round.
    """
    text = text_sites(request.clip, 1.0) if _require_text_alike(request, joined) else {}
    by_targets = {targets: training_sites(request.model, targets) for targets in TARGETS}
    offered = {name: site for sites in by_targets.values() for name, site in sites.items()} | text
    missing = sorted(
        name
        for name, factors in joined.items()
        if name not in offered or offered[name].shape != factors.shape
    )
    if missing:
        raise ValueError(
            f"the halves must fit the model, got {len(missing)} of {len(joined)} layers that it "
            f"lacks or has in another shape, such as {missing[0]}; choose halves of this base"
        )
    layers = joined.keys() - text.keys()
    for targets, sites in by_targets.items():
        if sites.keys() == layers:
            return replace(request.settings, targets=targets, target_pattern="")
    return replace(request.settings, target_pattern=" ".join(sorted(layers)))


def _require_text_alike(request: MakeRequest, joined: Mapping[str, LowRank]) -> bool:
    """Return whether the halves have layers of the text encoder, as the settings must say too."""
    rate = request.settings.text_encoder_rate
    held = any(changes_text_encoder(layer) for layer in joined)
    if held and not rate:
        raise ValueError(
            "the fine-tune must train what the halves have, got halves with layers of the text "
            "encoder and text_encoder_rate 0; set it in Training Settings as for the halves"
        )
    if rate and not held:
        raise ValueError(
            "the fine-tune must train what the halves have, got halves without layers of the text "
            f"encoder and text_encoder_rate {rate:g}; set it to 0 in Training Settings"
        )
    return held
