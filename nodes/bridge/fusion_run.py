"""A fusion from the node's inputs to all that it gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...lora_ops import LowRank, refactored
from ...training.concept import Concept
from ...training.fusion_store import grams_size
from ...training.lock import run_lock
from ...training.state import LoraState, lora_state
from .apply_concept import apply_concepts
from .base_digest import clip_digest, content_digest, model_digest
from .denoiser import strip_sampling
from .fusion_changes import Changes
from .fusion_plan import KEEPING, FusionPlan, FusionRequest, plan_fusion
from .fusion_report import ConceptResult, FusionReport
from .fusion_sites import WIDEST
from .fusion_stages import Course, Outcome, Stages
from .fusion_text import drawing_prompts
from .progress import warn_on_node
from .runs import runs_root

_SPARE = 64 * 2**20
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class Fusion:
    """What the fusion node gives.

    Args:
        model: With the fused LoRA on it, and what lets layers read their own words.
        clip: With the fused LoRA on it.
        lora: The fused LoRA, an ordinary one.
        concepts: The words of all, the first with the fused LoRA.
        report: In numbers.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    lora: LoraState
    concepts: tuple[Concept, ...]
    report: FusionReport


def fuse(request: FusionRequest) -> Fusion:
    """Return any number of concepts and LoRAs as one.

    Raises:
        ValueError: As ``plan_fusion`` has it, or an input of a layer is not finite.
        RuntimeError: Another ComfyUI fuses into the same base.
    """
    plain = request.model.clone()
    strip_sampling(plain)
    plan = plan_fusion(replace(request, model=plain))
    if len(plan.members) == 1:
        outcome = Outcome(changes=_alone(plan))
        outcome.notes.append("one concept needs no fusion; it is given back as it is")
    else:
        with torch.inference_mode():
            outcome = _fused(request, plan)
    report = FusionReport(
        tuple(_concept_result(one) for one in plan.changes),
        tuple(outcome.stages),
        tuple(outcome.layers),
        (*plan.notes, *outcome.notes),
    )
    for note in report.notes:
        warn_on_node(note)
    lora = _lora(request, plan, outcome)
    concepts = _words_of([member.concept for member in plan.members], lora)
    model, clip = apply_concepts(request.model, request.clip, concepts, 1.0, 1.0)
    return Fusion(model, clip, lora, concepts, report)


def _fused(request: FusionRequest, plan: FusionPlan) -> Outcome:
    keep_grams = request.statistics == KEEPING[1]
    folder, note = _folder(request, plan, keep_grams)
    own = request.activations == "own"
    course = Course(own, plan.drawing, plan.solving, folder, keep_grams)
    with nullcontext() if folder is None else run_lock(folder):
        outcome = Stages(plan.base, plan.layout, plan.members, plan.prior, course).run()
    outcome.notes += note
    return outcome


def _folder(
    request: FusionRequest, plan: FusionPlan, keep_grams: bool
) -> tuple[Path | None, list[str]]:
    """Return where the base's statistics are kept, and a sentence where that cannot be."""
    identity = content_digest([model_digest(plan.base.model), clip_digest(plan.base.clip)])
    folder = runs_root() / f"fusion-{identity[:12]}"
    if request.statistics == KEEPING[2]:
        shutil.rmtree(folder, ignore_errors=True)
        return None, []
    widths = {x.site: min(x.width, WIDEST) for x in plan.layout.layers if x.stage != "cross"}
    one = grams_size(widths)
    size = one * (1 + len(plan.members) * keep_grams)
    if keep_grams:
        warn_on_node(
            f"a Gram is kept for each of {len(plan.members)} concepts, {size / 2**20:.0f} MiB in "
            f"{folder}; choose {KEEPING[0]!r} to remove them again"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return None, [f"the statistics are not kept: {folder} cannot be written, {error.strerror}"]
    if free < size + _SPARE:
        return None, [
            f"the statistics are not kept: they need {size / 2**20:.0f} MiB in {folder}, which has "
            f"{free / 2**20:.0f} MiB free"
        ]
    return folder, []


def _alone(plan: FusionPlan) -> dict[str, LowRank]:
    """Return the changes of a single concept at its strength, with as many ranks as they need."""
    (member,) = plan.members
    strength = member.concept.strength
    return {
        name: refactored(LowRank(one.down.float(), one.up.float() * strength, one.alpha))
        for name, one in member.factors.items()
    }


def _lora(request: FusionRequest, plan: FusionPlan, outcome: Outcome) -> LoraState:
    """Return the fused LoRA, or the only concept's own file where that is what it is."""
    if len(plan.members) == 1:
        (member,) = plan.members
        if member.concept.strength == 1.0:
            return member.concept.lora
    triggers = [drawing_prompts(member.concept)[0] for member in plan.members]
    said = {
        "concepts": [
            {"name": m.concept.name, "strength": m.concept.strength, "weight": m.weight}
            for m in plan.members
        ],
        "activations": request.activations,
        "anchor": request.anchor,
        "damping": request.damping,
        "steps": request.steps,
        "seed": request.seed,
    }
    metadata = {
        "modelspec.architecture": plan.base.family.architecture,
        "ss_base_model_version": plan.base.family.base_version,
        "modelspec.trigger_phrase": "; ".join(triggers),
        "pastiche.fusion": json.dumps(said),
    }
    with torch.inference_mode(False):
        return lora_state(outcome.changes, metadata)


def _words_of(concepts: Sequence[Concept], lora: LoraState) -> tuple[Concept, ...]:
    """Return the concepts with their words alone, the fused LoRA on one of them."""
    carrier = next((c for c in concepts if c.embeddings), concepts[0])
    return tuple(
        replace(
            concept,
            lora=lora if concept is carrier else LoraState({}),
            strength=1.0,
            weight=1.0,
            images=None,
        )
        for concept in concepts
    )


def _concept_result(changes: Changes) -> ConceptResult:
    concept = changes.concept
    return ConceptResult(
        name=concept.name,
        has_words=bool(concept.embeddings),
        prompts=drawing_prompts(concept),
        strength=concept.strength,
        weight=concept.weight,
        used=changes.used,
        ignored=len(changes.ignored),
        missing=len(changes.missing),
        kept=tuple(changes.kept.items()),
    )
