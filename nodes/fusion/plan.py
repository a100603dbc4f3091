"""Check the inputs of the fusion node before anything is encoded or sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.sd
from comfy.model_patcher import ModelPatcher

from ...lora_ops.fusion import Anchor
from ...training.files.concept import Concept, name_key, named_once
from ..bridge.conditioning import require_clip
from ..bridge.digests import content_digest, vae_digest
from ..bridge.drawing import require_own_vae, require_size
from ..bridge.families import identify
from .as_concept import fused_names
from .changes import ConceptChanges, changes_of
from .drawing import Drawing
from .layers import Layout, layout_of
from .solve import SolverOptions
from .stages import FusionBase
from .statistics import Member
from .text import bound_tokens, drawing_prompts, encoder_prompts

ACTIVATIONS = ("paper", "own")
ANCHORS: tuple[Anchor, ...] = ("base", "average")
STORED_STATISTICS = ("sums", "a Gram per concept", "nothing")
PRIOR = "prior_prompts"


@dataclass(frozen=True)
class FusionRequest:
    """The fusion node's inputs.

    Args:
        model: The base model.
        clip: The base's text encoder.
        concepts: Concepts to fuse, any number.
        activations: One of ``ACTIVATIONS``.
        anchor: One of ``ANCHORS``.
        damping: Relative damping; 0 is each stage's default, a negative number none.
        rank: Maximum rank of a fused layer; 0 keeps every rank.
        energy: Fraction of a fused layer's energy to keep.
        steps: Sampling steps of each prompt.
        size: Side of the sampled pictures, in pixels; 0 is the family's resolution.
        seed: Seed of the noise.
        prior_prompts: Prompts on which the base's outputs are preserved.
        prior_weight: Weight of all prior prompts together; a concept's default weight is 1.
        statistics: One of ``STORED_STATISTICS``.
        vae: VAE for concepts with pictures, or None.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    concepts: Sequence[Concept]
    activations: str
    anchor: Anchor
    damping: float
    rank: int
    energy: float
    steps: int
    size: int
    seed: int
    prior_prompts: Sequence[str]
    prior_weight: float
    statistics: str
    vae: comfy.sd.VAE | None = None


@dataclass(frozen=True)
class FusionPlan:
    """A checked request.

    Args:
        base: Base of the fusion.
        changes: Changes of each concept's LoRA.
        layout: Layers that are fused.
        members: Concepts that are fused.
        prior: Prompts on which the base's outputs are preserved, or None.
        drawing: Options of the sampling.
        solving: Options of the solver.
        notes: Sentences for the report.
    """

    base: FusionBase
    changes: tuple[ConceptChanges, ...]
    layout: Layout
    members: tuple[Member, ...]
    prior: Member | None
    drawing: Drawing
    solving: SolverOptions
    notes: tuple[str, ...]


def plan_fusion(request: FusionRequest) -> FusionPlan:
    """Return the plan of a fusion.

    Raises:
        ValueError: A concept doesn't fit the base or the others, no weight is above 0, or a
            setting is out of range.
    """
    family = identify(request.model)
    require_clip(request.clip)
    base = FusionBase(request.model, request.clip, request.vae, family)
    concepts, notes = _distinct_concepts(request.concepts)
    _refuse_fused_parts(concepts)
    for concept in concepts:
        _require_family(family.name, concept)
        drawing_prompts(concept)
        for prompt in encoder_prompts(concept):
            bound_tokens(request.clip, concept, prompt)
        if concept.images is not None and request.vae is None:
            raise ValueError(
                f"the pictures of {concept.name!r} need a VAE, got none; connect the checkpoint's "
                "VAE, or leave the pictures out"
            )
        if concept.images is not None:
            require_own_vae(request.model, request.vae)
    prior = _prior(request)
    changes = tuple(changes_of(request.model, request.clip, concept) for concept in concepts)
    if not any(one.factors for one in changes):
        raise ValueError(
            "at least one concept must have a LoRA that changes this model, got none of "
            f"{len(concepts)}; connect concepts with a LoRA, or use Apply Concept"
        )
    layout = layout_of(request.model, request.clip, family, changes)
    if len(concepts) > 1 and layout.count_shared() == 0:
        notes.append(
            "no layer is changed by more than one of the concepts, so nothing had to be shared; "
            "each change was only kept from touching the others' inputs"
        )
    size = request.size or family.plain.resolution
    require_size(family, size, size)
    drawing = Drawing(request.steps, size, request.seed)
    members = tuple(
        Member(concept, factors, _digest(concept, request.vae))
        for concept, factors in zip(concepts, layout.factors, strict=True)
    )
    solving = SolverOptions(request.anchor, request.damping, request.rank, request.energy)
    if request.damping < 0:
        notes.append(
            "without damping a fused change may be much stronger than the concepts' own on "
            "ordinary inputs"
        )
    return FusionPlan(base, changes, layout, members, prior, drawing, solving, tuple(notes))


def _distinct_concepts(concepts: Sequence[Concept]) -> tuple[list[Concept], list[str]]:
    """Return the distinct concepts with a weight above 0, and notes on all others."""
    notes: list[str] = []
    if not concepts:
        raise ValueError("at least one concept must be connected, got none; connect a concept")
    once: dict[str, Concept] = {}
    for concept in concepts:
        if not (math.isfinite(concept.weight) and concept.weight >= 0):
            raise ValueError(
                f"the weight of {concept.name!r} must be 0 or a positive number, got "
                f"{concept.weight}; set it in Concept for Fusion"
            )
        digest = _digest(concept, None)
        if digest in once:
            notes.append(f"{concept.name} is connected twice and counts once, with both weights")
            both = once[digest].weight + concept.weight
            once[digest] = replace(once[digest], weight=both)
        else:
            once[digest] = concept
    kept = [concept for concept in once.values() if concept.weight > 0]
    if not kept:
        raise ValueError(
            "at least one concept must have a weight above 0, got only zeros; raise the weight of "
            "what shall be fused"
        )
    notes += [
        f"{concept.name} has weight 0 and is left out"
        for concept in once.values()
        if concept.weight == 0
    ]
    named_once(kept)
    return kept, notes


def _refuse_fused_parts(concepts: Sequence[Concept]) -> None:
    """Raise if a concept is the output of another fusion, in which one carries the LoRA of all.

    The others have words but no change; fused again, they would pull their own prompts back to the
    base.
    """
    fused = {name_key(n) for concept in concepts for n in fused_names(concept.lora)}
    for concept in concepts:
        part = name_key(concept.name) in fused or not concept.embeddings
        if len(concepts) > 1 and not concept.lora and part:
            raise ValueError(
                "every concept must bring a change of its own, got "
                f"{concept.name!r}, which is part of a fusion; connect the concepts themselves, or "
                "the fused LoRA through Concept for Fusion"
            )


def _require_family(base: str, concept: Concept) -> None:
    made_for = concept.family
    if made_for is not None and made_for.name != base:
        raise ValueError(
            f"{concept.name!r} must be made for this model, {base}, got one made for "
            f"{made_for.name}; fuse concepts of one base"
        )


def _prior(request: FusionRequest) -> Member | None:
    prompts = tuple(prompt.strip() for prompt in request.prior_prompts if prompt.strip())
    if not prompts or request.prior_weight == 0:
        return None
    concept = Concept(PRIOR, "", {}, prompts=prompts, weight=request.prior_weight)
    for prompt in prompts:
        bound_tokens(request.clip, concept, prompt)
    return Member(concept, {}, _digest(concept, None))


def _digest(concept: Concept, vae: comfy.sd.VAE | None) -> str:
    """Return a digest of everything that a concept's statistics depend on."""
    pieces = [
        concept.digest,
        dict(concept.lora),
        concept.strength,
        list(concept.prompts),
        concept.images,
        vae_digest(vae) if vae is not None and concept.images is not None else None,
    ]
    return content_digest(pieces)
