"""A Break-for-Make half from pictures: what the node does when it is queued."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...training import Gate, LoraState, Trained, lora_state
from ...training.files.metadata import as_metadata
from ...training.recipes import Half
from ...training.recipes.break_for_make import HALF
from ..pictures.picture import Picture, pictures_of
from ..trainer.examples import captioned_examples, preview_scene
from ..trainer.progress_bar import Share
from ..trainer.report import shared_metadata, values_line, warnings
from ..trainer.run import Prepared, TrainingJob, run_training
from .auxiliary import auxiliary_pictures
from .half_plan import HalfPlan, HalfRequest, plan_half, run_pieces

SHOWN_PICTURES = 4
NO_CORRESPONDENCE = (
    "without auxiliary pictures or prompts the partner half rests: the half is learnt beside one "
    "partner alone, and may fit others less; write a few auxiliary_prompts"
)


@dataclass(frozen=True)
class HalfResult:
    """What the node hands on and shows.

    Args:
        half: The half.
        losses: Curves ``loss``, ``main`` and, with auxiliary pictures, ``auxiliary``.
        pictures: The first pictures as they were trained, each an IMAGE.
        text: What was trained, from which defaults, and where it lies.
    """

    half: LoraState
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_half(request: HalfRequest, share: Share | None = None) -> HalfResult:
    """Train the half, or return what an equal run has left.

    Args:
        request: The node's inputs.
        share: Of the node's progress bar; all of it where none is given.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    plan = plan_half(request)
    outcome = run_training(
        TrainingJob(
            name=request.run_name,
            node_id=request.node_id,
            model=request.model,
            config=plan.config,
            settings=request.settings,
            pieces=run_pieces(request, plan),
            facts={},
            prepare=lambda facts: _prepare(request, plan),
            loras=lambda trained, facts, identity: _loras(request, plan, trained, identity),
            described={"family": plan.family.name, "prompts": plan.prompts},
            share=share,
            text=plan.text,
        )
    )
    run = outcome.run
    lines = [
        values_line(request, plan.family, plan.config, plan.family.half.source, run.steps),
        _pictures_line(plan),
        *warnings(plan.family),
        *outcome.notes,
    ]
    return HalfResult(
        half=run.loras[HALF],
        losses=dict(run.losses),
        pictures=[one.fitted()[0].pixels[None] for one in plan.pictures[:SHOWN_PICTURES]],
        text="\n".join(lines),
    )


def _prepare(request: HalfRequest, plan: HalfPlan) -> Prepared:
    auxiliary = [*plan.auxiliary, *_drawn(request, plan)]
    source = (request.model, request.clip, request.vae)
    main, *mirrored = captioned_examples(*source, plan.pictures, request.settings)
    # What auxiliary pictures show is no object of the training: they are taken as they are.
    others, *_ = captioned_examples(*source, auxiliary, replace(request.settings, flip="never"))
    recipe = Half(
        role=request.role,
        examples=main,
        auxiliary=others,
        projections=plan.projections,
        content_owns=request.content_owns,
        partner_rate=plan.partner_rate,
        gradients=request.gradients,
        samples=request.settings.samples,
        mirrored=mirrored[0] if mirrored else (),
    )
    gates = {HALF: Gate()}
    scene = preview_scene(*source, request.settings, plan.prompts, (gates, gates), main[0].latent)
    return Prepared(recipe, scene)


def _drawn(request: HalfRequest, plan: HalfPlan) -> list[Picture]:
    """Return the auxiliary pictures that the base draws from their prompts."""
    if not plan.drawn:
        return []
    side = plan.resolution // plan.family.multiple * plan.family.multiple
    pictures = auxiliary_pictures(
        request.model, request.clip, request.vae, plan.drawn, request.seed, side
    )
    return pictures_of(pictures, (), plan.drawn, plan.resolution, plan.family.multiple)


def _loras(
    request: HalfRequest, plan: HalfPlan, trained: Trained, identity: str
) -> dict[str, LoraState]:
    metadata = {
        **shared_metadata(
            method="b4m",
            request=request,
            family=plan.family,
            config=plan.config,
            resolution=plan.resolution,
            steps=trained.steps,
            identity=identity,
        ),
        **plan.facts.as_metadata(),
        "pastiche.stages": "break",
        "pastiche.prompts": "\n".join(plan.prompts),
        "pastiche.gradients": request.gradients,
        "pastiche.start": request.start,
        "pastiche.basis_seed": request.basis_seed,
        "pastiche.auxiliary": len(plan.auxiliary) + len(plan.drawn),
        "modelspec.trigger_phrase": plan.facts.token,
        "ss_num_train_images": len(plan.pictures),
    }
    return {HALF: lora_state(trained.adapters[HALF], as_metadata(metadata))}


def _pictures_line(plan: HalfPlan) -> str:
    """Return what the half is learnt from."""
    auxiliary = len(plan.auxiliary) or len(plan.drawn)
    main = len(plan.pictures)
    pictures = f"{main} picture{'s'[: main - 1]}"
    if not auxiliary:
        return f"{pictures}; {NO_CORRESPONDENCE}"
    how = "drawn by the base" if plan.drawn else "given"
    return f"{pictures} beside {auxiliary} auxiliary ones, {how}"
