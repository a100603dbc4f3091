"""One LoRA of a content and a style half, as they are or after a joint fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...lora_ops import LowRank, PartlyLearnable
from ...lora_ops.halves import Part, join_layer
from ...training import Gate, LoraState, Trained, lora_state, metadata_of
from ...training.files.half import BASIS, OWNER, TOKEN, check_fit, half_layers
from ...training.files.metadata import as_metadata
from ...training.recipes import Make
from ...training.recipes.break_for_make import LORA
from ..trainer.examples import captioned_examples, preview_scene
from ..trainer.progress_bar import Share
from ..trainer.report import warnings
from ..trainer.run import Prepared, TrainingJob, run_training
from .make_plan import MakePlan, MakeRequest, plan_make, run_pieces

_BASE = ("modelspec.architecture", "ss_base_model_version", "pastiche.base_family")
CONTENT_TOKEN, STYLE_TOKEN = "pastiche.content_token", "pastiche.style_token"


@dataclass(frozen=True)
class MakeResult:
    """What the node hands on and shows.

    Args:
        loras: Every content with every style, content-major.
        losses: Of the fine-tune; empty without one.
        text: What was made of what.
    """

    loras: list[LoraState]
    losses: dict[str, list[float]]
    text: str


def make_loras(request: MakeRequest, share: Share | None = None) -> MakeResult:
    """Return the LoRAs that the node makes.

    Args:
        request: The node's inputs.
        share: Of the node's progress bar.

    Raises:
        ValueError: Halves don't fit or an input is not what it must be; the message says which.
        RuntimeError: The fine-tune broke off.
    """
    strengths = (request.content_strength, request.style_strength)
    loras = made(request.contents, request.styles, *strengths)
    if not request.steps:
        return MakeResult(loras, {"loss": []}, _made_text(request, loras))
    whole = made(request.contents, request.styles)[0]
    plan = plan_make(request, half_layers(whole))
    outcome = run_training(
        TrainingJob(
            name=request.run_name,
            node_id=request.node_id,
            model=request.model,
            config=plan.config,
            settings=plan.settings,
            pieces=run_pieces(request, plan),
            facts={},
            prepare=lambda facts: _prepare(request, plan),
            loras=lambda trained, facts, identity: {
                LORA: _made_lora(plan, trained, identity, whole),
                "content half": request.contents[0],
                "style half": request.styles[0],
            },
            described={"family": plan.family.name},
            share=share,
            text=plan.text,
        )
    )
    trained = outcome.run.loras[LORA]
    layers = _scaled(half_layers(trained), plan.content_owns, *strengths)
    lora = lora_state(layers, {**trained.metadata, **_strengths(*strengths)})
    lines = [
        f"{plan.family.name}: {outcome.run.steps} steps with {plan.config.optimizer}, learning "
        f"rate {plan.config.learning_rate:g}, {len(plan.contents)} content and "
        f"{len(plan.styles)} style pictures",
        *warnings(plan.family),
        *outcome.notes,
    ]
    return MakeResult([lora], dict(outcome.run.losses), "\n".join(lines))


def made(
    contents: Sequence[LoraState],
    styles: Sequence[LoraState],
    content_strength: float = 1.0,
    style_strength: float = 1.0,
) -> list[LoraState]:
    """Return one ordinary LoRA for every content with every style, content-major.

    At strengths of 1 every number of a result is bit-equal to a half's.

    Raises:
        ValueError: There is no content or no style, or two halves don't fit together.
    """
    if not contents or not styles:
        raise ValueError(
            "making needs at least one content and one style half, got "
            f"{len(contents)} and {len(styles)}; connect both"
        )
    return [
        _made(content, style, content_strength, style_strength)
        for content in contents
        for style in styles
    ]


def _made(content: LoraState, style: LoraState, *strengths: float) -> LoraState:
    content_owns = check_fit(content, style)
    ours, other = half_layers(content), half_layers(style)
    layers = {
        layer: join_layer(factors, other[layer], content_owns, *strengths)
        for layer, factors in ours.items()
    }
    return lora_state(layers, {**_metadata(content, style), **_strengths(*strengths)})


def _scaled(
    layers: Mapping[str, LowRank], content_owns: Part, *strengths: float
) -> dict[str, LowRank]:
    """Return a made LoRA with its owned parts scaled."""
    return {
        layer: join_layer(factors, factors, content_owns, *strengths)
        for layer, factors in layers.items()
    }


def _metadata(content: LoraState, style: LoraState) -> dict[str, str]:
    """Return what the made LoRA says of itself: what both halves say alike, and of each."""
    ours, other = metadata_of(content), metadata_of(style)
    tokens = [found.get(TOKEN, "") for found in (ours, other)]
    return {
        **{key: ours[key] for key in _BASE if ours.get(key) == other.get(key) and key in ours},
        "pastiche.method": "b4m",
        "pastiche.role": "made",
        "pastiche.stages": "break, make without steps",
        BASIS: ours[BASIS],
        OWNER: ours[OWNER],
        CONTENT_TOKEN: tokens[0],
        STYLE_TOKEN: tokens[1],
        "modelspec.trigger_phrase": ", ".join(filter(None, tokens)),
    }


def _strengths(content: float, style: float) -> dict[str, str]:
    return {
        "pastiche.content_strength": f"{content:g}",
        "pastiche.style_strength": f"{style:g}",
    }


def _prepare(request: MakeRequest, plan: MakePlan) -> Prepared:
    source = (request.model, request.clip, request.vae)
    # Where pictures are mirrored at random, both ways take their turns.
    contents, styles = (
        [one for view in captioned_examples(*source, pictures, plan.settings) for one in view]
        for pictures in (plan.contents, plan.styles)
    )
    projections = PartlyLearnable(given=plan.joined)
    recipe = Make(contents, styles, projections, plan.settings.samples)
    gates = {LORA: Gate()}
    scene = preview_scene(
        *source, plan.settings, [plan.contents[0].caption], (gates, gates), contents[0].latent
    )
    return Prepared(recipe, scene)


def _made_lora(plan: MakePlan, trained: Trained, identity: str, whole: LoraState) -> LoraState:
    metadata: dict[str, Any] = {
        **whole.metadata,
        "pastiche.stages": f"break, make with {trained.steps} steps",
        "pastiche.run_id": identity,
        "pastiche.steps": trained.steps,
        "pastiche.config": {**plan.settings.identity_fields(), **plan.config.as_json()},
    }
    return lora_state(trained.adapters[LORA], as_metadata(metadata))


def _made_text(request: MakeRequest, loras: Sequence[LoraState]) -> str:
    return (
        f"{len(request.contents)} content and {len(request.styles)} style halves made into "
        f"{len(loras)} LoRA{'s'[: len(loras) - 1]}, without further training"
    )
