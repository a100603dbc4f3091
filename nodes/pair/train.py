"""Pair Customization from pictures to LoRAs: what the train node does when it is queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...training import Example, Gate, LoraState, Trained, lora_state
from ...training.files.metadata import as_metadata
from ...training.recipes import Pair
from ...training.recipes.pair import STYLE, content_name
from ...training.runs.run_store import StoredRun
from ..pictures.fitted_image import FittedImage
from ..trainer.examples import VIEWS, picture_example, preview_scene, read_caption
from ..trainer.preview import PreviewScene
from ..trainer.report import shared_metadata, values_line, warnings
from ..trainer.run import Prepared, TrainingJob, run_training
from .frames import side_by_side
from .plan import PairPlan, PairRequest, plan_pair, run_pieces


@dataclass(frozen=True)
class PairResult:
    """What the train node hands on and shows.

    Args:
        style: The style LoRA.
        contents: One content LoRA per pair.
        losses: Curves ``loss``, ``content`` and ``style``.
        pictures: Each pair as it was trained, an IMAGE of before beside after.
        text: What was trained, from which defaults, and where it lies.
    """

    style: LoraState
    contents: list[LoraState]
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_pair(request: PairRequest) -> PairResult:
    """Train the pairs, or return what an equal run has left.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    plan = plan_pair(request)
    outcome = run_training(
        TrainingJob(
            name=request.run_name,
            node_id=request.node_id,
            model=request.model,
            config=plan.config,
            settings=request.settings,
            pieces=run_pieces(request, plan),
            facts={"style_start_step": plan.style_start_step},
            prepare=lambda facts: _prepare(request, plan, facts),
            loras=lambda trained, facts, identity: pair_loras(
                request, plan, trained, facts, identity
            ),
            described={
                "family": plan.family.name,
                "pictures": [pair.note for pair in plan.pairs],
            },
            text=plan.text,
        )
    )
    run = outcome.run
    return PairResult(
        style=run.loras[STYLE],
        contents=[run.loras[content_file(pair)] for pair in range(len(plan.pairs))],
        losses=dict(run.losses),
        pictures=[side_by_side(pair, request.settings.flip == "always") for pair in plan.pairs],
        text=pair_text(request, plan, run, outcome.notes),
    )


def _prepare(request: PairRequest, plan: PairPlan, facts: Mapping[str, Any]) -> Prepared:
    pairs, *mirrored = _examples(request, plan)
    recipe = Pair(
        pairs=pairs,
        style_start=facts["style_start_step"],
        samples=request.settings.samples,
        basis_seed=plan.family.pair.basis_seed,
        mirrored=mirrored[0] if mirrored else (),
    )
    return Prepared(recipe, _preview(request, plan, pairs[0][1]))


def _preview(request: PairRequest, plan: PairPlan, after: Example) -> PreviewScene:
    return preview_scene(
        model=request.model,
        clip=request.clip,
        vae=request.vae,
        settings=request.settings,
        prompts=plan.style_prompts,
        gates=({STYLE: Gate()}, {}),
        latent=after.latent,
    )


def _examples(request: PairRequest, plan: PairPlan) -> list[list[tuple[Example, Example]]]:
    """Return all pairs encoded, once for every way they are mirrored."""
    clip, settings = request.clip, request.settings
    prompts = dict.fromkeys((*plan.content_prompts, *plan.style_prompts))
    texts = {prompt: read_caption(clip, prompt, settings) for prompt in prompts}
    empty = read_caption(clip, "", settings) if settings.caption_dropout else None
    triples = list(zip(plan.pairs, plan.content_prompts, plan.style_prompts, strict=True))

    def example(image: FittedImage, prompt: str, mirrored: bool) -> Example:
        return picture_example(
            model=request.model,
            vae=request.vae,
            image=image,
            text=texts[prompt],
            mirrored=mirrored,
            uncond=empty,
        )

    return [
        [
            (example(pair.before, content, mirrored), example(pair.after, style, mirrored))
            for pair, content, style in triples
        ]
        for mirrored in VIEWS[settings.flip]
    ]


def content_file(pair: int) -> str:
    """Return the name of a pair's content LoRA in the run's folder."""
    return f"content_{pair + 1}"


def pair_loras(
    request: PairRequest,
    plan: PairPlan,
    trained: Trained,
    facts: Mapping[str, Any],
    identity: str,
) -> dict[str, LoraState]:
    """Return the style and the content LoRAs by file name, with their metadata."""
    shared = {
        **shared_metadata(
            method="pair",
            request=request,
            family=plan.family,
            config=plan.config,
            resolution=plan.resolution,
            steps=trained.steps,
            identity=identity,
        ),
        "pastiche.style_words": plan.style_words,
        "pastiche.basis_seed": plan.family.pair.basis_seed,
        "pastiche.style_start_step": facts["style_start_step"],
        "pastiche.pairs": len(plan.pairs),
    }
    prompts = "\n".join(dict.fromkeys(plan.content_prompts))
    style = {**shared, "pastiche.role": "style", "pastiche.content_prompt": prompts}
    loras = {STYLE: lora_state(trained.adapters[STYLE], as_metadata(style))}
    for pair, prompt in enumerate(plan.content_prompts):
        content = {**shared, "pastiche.role": "content", "pastiche.content_prompt": prompt}
        layers = trained.adapters[content_name(pair)]
        loras[content_file(pair)] = lora_state(layers, as_metadata(content))
    return loras


def pair_text(request: PairRequest, plan: PairPlan, run: StoredRun, notes: Sequence[str]) -> str:
    """Return the lines that the node shows: values with the source of defaults, pictures, notes."""
    lines = [
        values_line(request, plan.family, plan.config, plan.family.pair.source, run.steps),
        f"{_style_start(run)}, mirrored: {request.settings.flip}",
        *(pair.note for pair in plan.pairs),
        *warnings(plan.family),
    ]
    return "\n".join([*lines, *notes])


def _style_start(run: StoredRun) -> str:
    """Return since when the style was learnt; a run that was stopped early has not begun to."""
    first = run.facts["style_start_step"] + 1
    if first > run.steps:
        return f"stopped at step {run.steps}, before the style begins at step {first}"
    return f"style from step {first} of {run.steps}"
