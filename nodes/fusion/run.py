"""Run a fusion from the node's inputs to its outputs."""

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
from .changes import ConceptChanges
from .layers import WIDEST
from .plan import STORED_STATISTICS, FusionPlan, FusionRequest, plan_fusion
from .report import ConceptResult, FusionReport
from .stages import FusionOptions, FusionOutcome, Stages
from .text import drawing_prompts

_IN_USE = (
    "a base's statistics must be used by one fusion at a time, got {folder} in use by another; "
    "wait for it, stop it, or set statistics to nothing"
)
_SPARE = 64 * 2**20  # bytes that stay free on the disk


@dataclass(frozen=True)
class Fusion:
    """The outputs of a fusion.

    Args:
        model: MODEL with the fused LoRA and with the wrappers that give each layer its own context.
        clip: CLIP with the fused LoRA.
        lora: The fused LoRA, in the form of an ordinary one.
        concepts: All concepts with their words; one of them also has the fused LoRA.
        report: Results of the fusion.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    lora: LoraState
    concepts: tuple[Concept, ...]
    report: FusionReport


def fuse(request: FusionRequest) -> Fusion:
    """Fuse any number of concepts and LoRAs into one LoRA.

    Raises:
        ValueError: ``plan_fusion`` refuses an input, or an input of a layer is not finite.
        RuntimeError: Another ComfyUI is fusing on the same base.
    """
    plain = request.model.clone()
    strip_sampling(plain)
    plan = plan_fusion(replace(request, model=plain))
    if len(plan.members) == 1:
        outcome = FusionOutcome(changes=_single_changes(plan))
        outcome.notes.append("one concept needs no fusion; it is given back as it is")
    else:
        with torch.inference_mode():
            outcome = _run_stages(request, plan)
    report = FusionReport(
        tuple(_concept_result(one) for one in plan.changes),
        tuple(outcome.stages),
        tuple(outcome.layers),
        (*plan.notes, *_first_of_each(outcome.notes)),
    )
    for note in report.notes:
        warn_on_node(note)
    lora = _lora(request, plan, outcome)
    concepts = _fused_concepts([member.concept for member in plan.members], lora)
    model, clip = apply_concepts(request.model, request.clip, concepts, 1.0, 1.0)
    return Fusion(model, clip, lora, concepts, report)


def _first_of_each(notes: Sequence[str]) -> list[str]:
    """Return the notes without those that repeat an earlier one up to the first colon."""
    found: dict[str, str] = {}
    for note in notes:
        found.setdefault(note.partition(":")[0], note)
    return list(found.values())


def _run_stages(request: FusionRequest, plan: FusionPlan) -> FusionOutcome:
    """Run the stages with the stored statistics of the base, and with a scratch folder."""
    keep_grams = request.statistics == STORED_STATISTICS[1]
    notes: list[str] = []
    with _statistics_folder(request, plan, notes) as folder, _scratch_folder() as scratch:
        if folder is not None and not keep_grams:
            remove_grams(folder)
        options = FusionOptions(
            own_activations=request.activations == "own",
            drawing=plan.drawing,
            solving=plan.solving,
            store=folder,
            keep_grams=keep_grams,
            writable=folder is not None and _have_room(plan, folder, keep_grams, notes),
            scratch=scratch,
        )
        outcome = Stages(plan.base, plan.layout, plan.members, plan.prior, options).run()
    outcome.notes += notes
    return outcome


@contextmanager
def _scratch_folder() -> Iterator[Path | None]:
    """Create a temporary folder in ComfyUI's temp folder; yield None if it cannot be written."""
    root = Path(folder_paths.get_temp_directory())
    with ExitStack() as stack:
        folder = None
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(
                dir=root, prefix="pastiche-fusion-", ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(temporary))
        yield folder


@contextmanager
def _statistics_folder(
    request: FusionRequest, plan: FusionPlan, notes: list[str]
) -> Iterator[Path | None]:
    """Lock the folder of the base's statistics; yield None if nothing is stored.

    If the folder cannot be written, a note is appended.
    """
    identity = content_digest([model_digest(plan.base.model), clip_digest(plan.base.clip)])
    folder = runs_root() / f"fusion-{identity[:12]}"
    with ExitStack() as stack:
        locked: Path | None = None
        if request.statistics == STORED_STATISTICS[2]:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            try:
                stack.enter_context(run_lock(folder, _IN_USE))
                locked = folder
            except UnwritableError as error:
                notes.append(f"the statistics are not kept: {error}")
        yield locked


def _have_room(plan: FusionPlan, folder: Path, keep_grams: bool, notes: list[str]) -> bool:
    """Return whether there is disk space for new statistics; if not, append a note.

    Stored statistics are read in any case.
    """
    members = [*plan.members, *([plan.prior] if plan.prior else [])]
    layers = [layer for layer in plan.layout.layers if layer.stage != "cross"]
    stages = [
        grams_size({x.site: min(x.width, WIDEST) for x in layers if x.stage == stage})
        for stage in ("text", "spatial")
    ]
    per_concept = sum(
        8 * member.factors[layer.name].rank * layer.width + 4 * SAMPLED_ROWS * layer.width
        for member in members
        for layer in layers
        if layer.name in member.factors
    )
    size = sum(stages) * (1 + len(members) * keep_grams) + per_concept
    if keep_grams:
        warn_on_node(
            f"a Gram is kept for each of {len(members)} concepts, {size / 2**20:.0f} MiB in "
            f"{folder}; choose {STORED_STATISTICS[0]!r} to remove them again"
        )
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    # While a sum is replaced, the old and the new file both exist.
    needed, free = max(0, size - stored) + max(stages), shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        notes.append(
            f"new statistics are not kept: they need {needed / 2**20:.0f} MiB in {folder}, which "
            f"has {free / 2**20:.0f} MiB free; make room or set statistics to nothing"
        )
        return False
    return True


def _single_changes(plan: FusionPlan) -> dict[str, LowRank]:
    """Return the changes of a single concept at its strength, at the lowest exact rank."""
    (member,) = plan.members
    strength = member.concept.strength
    return {
        name: refactored(LowRank(one.down.float(), one.up.float() * strength, one.alpha))
        for name, one in member.factors.items()
    }


def _lora(request: FusionRequest, plan: FusionPlan, outcome: FusionOutcome) -> LoraState:
    """Return the fused LoRA; a single concept of strength 1 keeps its own LoRA."""
    if len(plan.members) == 1:
        (member,) = plan.members
        if member.concept.strength == 1.0:
            return member.concept.lora
    # The file does not contain the concepts' words, so prompts that name them trigger nothing.
    triggers = [
        drawing_prompts(member.concept)[0]
        for member in plan.members
        if not member.concept.embeddings
    ]
    record = {
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
        FUSED: json.dumps(record),
    }
    with torch.inference_mode(False):
        return lora_state(outcome.changes, metadata)


def _fused_concepts(concepts: Sequence[Concept], lora: LoraState) -> tuple[Concept, ...]:
    """Return the concepts with their words, and with the fused LoRA on one of them."""
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


def _concept_result(changes: ConceptChanges) -> ConceptResult:
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
        kept_energy=tuple(changes.kept_energy.items()),
    )
