"""A fusion from the node's inputs to all that it gives."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ...lora_ops import LowRank, refactored
from ...training.files.concept import Concept
from ...training.files.lora_state import LoraState, lora_state
from ...training.runs.fusion_store import grams_size, remove_grams
from ...training.runs.lock import UnwritableError, run_lock
from ..bridge.digests import clip_digest, content_digest, model_digest
from ..bridge.node_output import warn_on_node
from ..bridge.output_folder import runs_root
from ..bridge.sampling_options import strip_sampling
from ..concepts.apply import apply_concepts
from .activations import SAMPLED_ROWS
from .as_concept import FUSED
from .changes import Changes
from .layers import WIDEST
from .plan import KEEPING, FusionPlan, FusionRequest, plan_fusion
from .report import ConceptResult, FusionReport
from .stages import Course, Outcome, Stages
from .text import drawing_prompts

_IN_USE = (
    "a base's statistics must be used by one fusion at a time, got {folder} in use by another; "
    "wait for it, stop it, or set statistics to nothing"
)
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
        (*plan.notes, *_first_of_each(outcome.notes)),
    )
    for note in report.notes:
        warn_on_node(note)
    lora = _lora(request, plan, outcome)
    concepts = _words_of([member.concept for member in plan.members], lora)
    model, clip = apply_concepts(request.model, request.clip, concepts, 1.0, 1.0)
    return Fusion(model, clip, lora, concepts, report)


def _first_of_each(notes: Sequence[str]) -> list[str]:
    """Return notes without those that say the same of a later stage: alike up to the colon."""
    found: dict[str, str] = {}
    for note in notes:
        found.setdefault(note.partition(":")[0], note)
    return list(found.values())


def _fused(request: FusionRequest, plan: FusionPlan) -> Outcome:
    keep_grams = request.statistics == KEEPING[1]
    notes: list[str] = []
    with _folder(request, plan, notes) as folder, _scratch() as scratch:
        if folder is not None and not keep_grams:
            remove_grams(folder)
        course = Course(
            request.activations == "own",
            plan.drawing,
            plan.solving,
            folder,
            keep_grams,
            folder is not None and _fits(plan, folder, keep_grams, notes),
            scratch,
        )
        outcome = Stages(plan.base, plan.layout, plan.members, plan.prior, course).run()
    outcome.notes += notes
    return outcome


@contextmanager
def _scratch() -> Iterator[Path | None]:
    """Give a folder below ComfyUI's own for temporary files; None where it cannot be written."""
    root = Path(folder_paths.get_temp_directory())
    with ExitStack() as stack:
        place = None
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(
                dir=root, prefix="pastiche-fusion-", ignore_cleanup_errors=True
            )
            place = Path(stack.enter_context(made))
        yield place


@contextmanager
def _folder(request: FusionRequest, plan: FusionPlan, notes: list[str]) -> Iterator[Path | None]:
    """Hold the folder of the base's statistics; None where nothing is kept, said if it can't be."""
    identity = content_digest([model_digest(plan.base.model), clip_digest(plan.base.clip)])
    folder = runs_root() / f"fusion-{identity[:12]}"
    with ExitStack() as stack:
        place: Path | None = None
        if request.statistics == KEEPING[2]:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            try:
                stack.enter_context(run_lock(folder, _IN_USE))
                place = folder
            except UnwritableError as error:
                notes.append(f"the statistics are not kept: {error}")
        yield place


def _fits(plan: FusionPlan, folder: Path, keep_grams: bool, notes: list[str]) -> bool:
    """Return whether new statistics find room; what lies there is read in any case."""
    members = [*plan.members, *([plan.prior] if plan.prior else [])]
    layers = [layer for layer in plan.layout.layers if layer.stage != "cross"]
    stages = [
        grams_size({x.site: min(x.width, WIDEST) for x in layers if x.stage == stage})
        for stage in ("text", "spatial")
    ]
    own = sum(
        8 * member.factors[layer.name].rank * layer.width + 4 * SAMPLED_ROWS * layer.width
        for member in members
        for layer in layers
        if layer.name in member.factors
    )
    size = sum(stages) * (1 + len(members) * keep_grams) + own
    if keep_grams:
        warn_on_node(
            f"a Gram is kept for each of {len(members)} concepts, {size / 2**20:.0f} MiB in "
            f"{folder}; choose {KEEPING[0]!r} to remove them again"
        )
    there = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    # A sum that is replaced lies there twice for a moment.
    needed, free = max(0, size - there) + max(stages), shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        notes.append(
            f"new statistics are not kept: they need {needed / 2**20:.0f} MiB in {folder}, which "
            f"has {free / 2**20:.0f} MiB free; make room or set statistics to nothing"
        )
        return False
    return True


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
    # Words of concepts are none of the file, so prompts that name them call up nothing.
    triggers = [
        drawing_prompts(member.concept)[0]
        for member in plan.members
        if not member.concept.embeddings
    ]
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
        **({"modelspec.trigger_phrase": "; ".join(triggers)} if triggers else {}),
        FUSED: json.dumps(said),
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
