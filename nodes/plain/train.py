"""The ordinary LoRA from captioned pictures: what the train node does when it is queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...training import Example, Gate, LoraState, Trained, lora_state
from ...training.files.metadata import as_metadata
from ...training.recipes import Single
from ...training.recipes.single import LORA
from ...training.runs.run_store import StoredRun
from ..pictures.buckets import counted
from ..text.training_cond import training_latent
from ..trainer.examples import captioned_examples, example, preview_scene, read_caption
from ..trainer.report import shared_metadata, values_line, warnings
from ..trainer.run import Prepared, TrainingJob, run_training
from .plan import PlainPlan, PlainRequest, plan_plain, run_pieces

SHOWN_PICTURES = 4
KEPT_CAPTIONS = 20
"""In the file's metadata, of the distinct ones."""
KEPT_TAGS = 200
_CUT = 0.15
"""Of a picture; more is told."""


@dataclass(frozen=True)
class PlainResult:
    """What the train node hands on and shows.

    Args:
        lora: The LoRA.
        losses: Curves ``loss`` and ``lora``.
        pictures: The first pictures as they were trained, each an IMAGE.
        text: What was trained, from which defaults, and where it lies.
    """

    lora: LoraState
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_plain(request: PlainRequest) -> PlainResult:
    """Train the pictures, or return what an equal run has left.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    plan = plan_plain(request)
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
            described={"family": plan.family.name, "pictures": _picture_lines(request, plan)},
            text=plan.text,
        )
    )
    run = outcome.run
    always = request.settings.flip == "always"
    shown = [picture.fitted()[0].pixels for picture in plan.pictures[:SHOWN_PICTURES]]
    return PlainResult(
        lora=run.loras[LORA],
        losses=dict(run.losses),
        pictures=[(pixels.flip(1) if always else pixels)[None] for pixels in shown],
        text=plain_text(request, plan, run, outcome.notes),
    )


def _prepare(request: PlainRequest, plan: PlainPlan) -> Prepared:
    examples, *mirrored = _examples(request, plan)
    recipe = Single(examples, request.settings.samples, mirrored[0] if mirrored else ())
    gates = {LORA: Gate()}
    scene = preview_scene(
        model=request.model,
        clip=request.clip,
        vae=request.vae,
        settings=request.settings,
        prompts=plan.captions or [request.captions[0] if request.captions else ""],
        gates=(gates, gates),
        latent=examples[0].latent,
    )
    return Prepared(recipe, scene)


def _examples(request: PlainRequest, plan: PlainPlan) -> list[list[Example]]:
    """Return all pictures encoded, once for every way they are mirrored."""
    if not plan.encoded:
        return captioned_examples(
            model=request.model,
            clip=request.clip,
            vae=request.vae,
            pictures=plan.pictures,
            settings=request.settings,
        )
    settings = request.settings
    empty = read_caption(request.clip, "", settings) if settings.caption_dropout else None
    return [
        [
            example(
                request.model,
                training_latent(request.model, one.latent)[0],
                one.conditioning,
                empty,
            )
            for one in plan.encoded
        ]
    ]


def _loras(
    request: PlainRequest, plan: PlainPlan, trained: Trained, identity: str
) -> dict[str, LoraState]:
    count = len(plan.pictures) or len(plan.encoded)
    metadata = {
        **shared_metadata(
            method="plain",
            request=request,
            family=plan.family,
            config=plan.config,
            resolution=plan.resolution,
            steps=trained.steps,
            identity=identity,
        ),
        "pastiche.role": "plain",
        "pastiche.images": count,
        "pastiche.masked": any(picture.mask is not None for picture in plan.pictures),
        "pastiche.captions": "\n".join(plan.captions[:KEPT_CAPTIONS]),
        "ss_num_train_images": count,
        **_tags(request.run_name, [picture.caption for picture in plan.pictures]),
    }
    return {LORA: lora_state(trained.adapters[LORA], as_metadata(metadata))}


def _tags(run: str, captions: Sequence[str]) -> dict[str, Any]:
    """Return how often which part of a caption stood, where other programs look for it."""
    parts = (part.strip() for caption in captions for part in caption.split(","))
    counts = Counter(part for part in parts if part)
    return {"ss_tag_frequency": {run: dict(counts.most_common(KEPT_TAGS))}} if counts else {}


def plain_text(request: PlainRequest, plan: PlainPlan, run: StoredRun, notes: Sequence[str]) -> str:
    """Return the lines that the node shows: values with the source of defaults, pictures, notes."""
    lines = [
        values_line(request, plan.family, plan.config, plan.family.plain.source, run.steps),
        *_picture_lines(request, plan),
        *warnings(plan.family),
    ]
    return "\n".join([*lines, *notes])


def _picture_lines(request: PlainRequest, plan: PlainPlan) -> list[str]:
    if plan.encoded:
        sizes = {tuple(one.latent.shape[1:]) for one in plan.encoded}
        return [f"{len(plan.encoded)} encoded pictures, latents of {len(sizes)} sizes"]
    pictures = plan.pictures
    lines = [
        f"{len(pictures)} pictures: {counted(picture.frame for picture in pictures)}, "
        f"mirrored: {request.settings.flip}"
    ]
    masked = sum(picture.mask is not None for picture in pictures)
    if masked:
        lines.append(f"{masked} of them count within their mask alone")
    bare = [str(picture.number) for picture in pictures if not picture.caption]
    if bare:
        lines.append(f"without a caption: picture {', '.join(bare)}")
    lines += [
        f"picture {picture.number} is cut to {picture.kept:.0%} of itself; crop it yourself"
        for picture in pictures
        if picture.kept < 1 - _CUT
    ]
    return lines
