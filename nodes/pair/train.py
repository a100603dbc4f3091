"""Pair Customization from pictures to LoRAs: what the train node does when it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...training import Example, Gate, LoraState
from ...training.recipes import Pair
from ...training.recipes.pair import STYLE
from ..pictures.fitted_image import FittedImage
from ..trainer.examples import VIEWS, picture_example, preview_scene, read_caption
from ..trainer.preview import PreviewScene
from ..trainer.run import Prepared, TrainingJob, run_training
from .frames import side_by_side
from .plan import PairPlan, PairRequest, plan_pair, run_pieces
from .report import content_file, pair_loras, pair_text


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
        *(request.model, request.clip, request.vae, request.settings, plan.style_prompts),
        ({STYLE: Gate()}, {}),
        after.latent,
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
            *(request.model, request.vae, image), texts[prompt], mirrored, uncond=empty
        )

    return [
        [
            (example(pair.before, content, mirrored), example(pair.after, style, mirrored))
            for pair, content, style in triples
        ]
        for mirrored in VIEWS[settings.flip]
    ]
