"""What a fusion says of itself: numbers for the plot, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

STAGE_NAMES = {
    "text": "text encoder",
    "cross": "keys and values of cross-attention",
    "spatial": "all other layers",
}


@dataclass(frozen=True)
class LayerResult:
    """One fused layer.

    Args:
        name: In a LoRA file.
        stage: When it was fused.
        rank: Of the fused change.
        norm: Frobenius norm of the fused change.
        average_norm: Of the plain average of the concepts' changes.
        norms: Of each concept's own change, 0 where it has none.
        left: For each concept, the share of its own change's effect on its own inputs that fusion
            gets wrong, measured on a sample; None where it has no change here.
        left_averaged: The same of the plain average.
        damping: What was added to the Gram's diagonal.
        solver: ``eigenvalues`` where the Gram was singular.
        cut: Share of the energy that a limit on the rank cut off.
        objective: What fusion made small, before that; None without a limit.
        loss: By how much the limit made it grow.
    """

    name: str
    stage: str
    rank: int
    norm: float
    average_norm: float
    norms: tuple[float, ...]
    left: tuple[float | None, ...]
    left_averaged: tuple[float | None, ...]
    damping: float
    solver: str
    cut: float
    objective: float | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class StageResult:
    """One stage.

    Args:
        stage: Which.
        layers: That were fused.
        passes: Concepts that were read or drawn for it.
        found: Concepts whose statistics lay in the store.
        collecting: Seconds of the passes, drawing included.
        solving: Seconds of the closed form.
        statistics: Bytes that the statistics take in memory.
        peak: Bytes at most in use meanwhile, of the graphics card or else of the process.
        in_span: Layers too wide for full statistics.
    """

    stage: str
    layers: int
    passes: int
    found: int
    collecting: float
    solving: float
    statistics: int
    peak: int
    in_span: int


@dataclass(frozen=True)
class ConceptResult:
    """One concept.

    Args:
        name: Its name.
        has_words: Whether it brings words of its own.
        prompts: With which it was drawn.
        strength: At which its change is reproduced.
        weight: Its importance.
        used: Layers of its file that were fused.
        ignored: Layers of its file that cannot be.
        missing: Layers of its file that the model does not have.
        kept: The least energy kept of changes in other forms, by form.
    """

    name: str
    has_words: bool
    prompts: tuple[str, ...]
    strength: float
    weight: float
    used: int
    ignored: int
    missing: int
    kept: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class FusionReport:
    """A fusion in numbers.

    Args:
        concepts: In order.
        stages: In order.
        layers: In the order of the stages.
        notes: Sentences on what was not as usual.
    """

    concepts: tuple[ConceptResult, ...]
    stages: tuple[StageResult, ...] = ()
    layers: tuple[LayerResult, ...] = ()
    notes: tuple[str, ...] = ()


def summary(report: FusionReport) -> str:
    """Return a report in a few lines: concepts, stages, and how much of each concept is left out."""
    lines = [_concept_line(concept) for concept in report.concepts]
    lines += [_stage_line(stage, report) for stage in report.stages]
    for index, concept in enumerate(report.concepts):
        fused, averaged = _lost(report.layers, index)
        if fused is not None and averaged is not None:
            lines.append(
                f"{concept.name}: {fused:.1%} of its effect is lost in the median layer, "
                f"{averaged:.1%} by plain averaging"
            )
    lines += report.notes
    return "\n".join(lines)


def table(report: FusionReport) -> str:
    """Return the summary and one line for each layer, tab-separated."""
    names = [concept.name for concept in report.concepts]
    heads = ["layer", "stage", "rank", "norm", "norm of average", "damping", "solver", "cut"]
    heads += ["objective", "loss", *(f"norm of {name}" for name in names)]
    heads += [f"lost of {name}" for name in names]
    heads += [f"lost of {name} by averaging" for name in names]
    rows = ["\t".join(heads)]
    for layer in report.layers:
        cells = [
            layer.name,
            layer.stage,
            str(layer.rank),
            f"{layer.norm:.4g}",
            f"{layer.average_norm:.4g}",
            f"{layer.damping:.3g}",
            layer.solver,
            f"{layer.cut:.4f}",
            "" if layer.objective is None else f"{layer.objective:.4g}",
            "" if layer.objective is None else f"{layer.loss:.4g}",
            *(f"{size:.4g}" for size in layer.norms),
            *(_share(share) for share in layer.left),
            *(_share(share) for share in layer.left_averaged),
        ]
        rows.append("\t".join(cells))
    return "\n".join([summary(report), "", *rows])


def _concept_line(concept: ConceptResult) -> str:
    what = "words and LoRA" if concept.has_words else "LoRA"
    text = (
        f"{concept.name}: {what} at strength {concept.strength:g}, weight {concept.weight:g}, "
        f"{concept.used} layers fused"
    )
    if concept.ignored:
        text += f", {concept.ignored} left out (biases, norms, embeddings)"
    if concept.missing:
        text += f", {concept.missing} not in this model"
    for form, energy in concept.kept:
        text += f", {form} kept with {energy:.2%} of the energy"
    return text


def _stage_line(stage: StageResult, report: FusionReport) -> str:
    singular = sum(
        layer.stage == stage.stage and layer.solver == "eigenvalues" for layer in report.layers
    )
    text = (
        f"{STAGE_NAMES[stage.stage]}: {stage.layers} layers, {stage.passes} concepts read"
        f"{f', {stage.found} found in the store' if stage.found else ''}, "
        f"{stage.collecting:.1f} s, solved in {stage.solving:.1f} s, statistics "
        f"{stage.statistics / 2**20:.0f} MiB, peak {stage.peak / 2**20:.0f} MiB"
    )
    if stage.in_span:
        text += (
            f", {stage.in_span} layers wider than 4096 fused within the span of the LoRAs, "
            "which may fit a little less well"
        )
    if singular:
        text += f", {singular} layers with singular statistics solved by eigenvalues"
    cuts = [layer.cut for layer in report.layers if layer.stage == stage.stage and layer.cut > 0]
    if cuts:
        text += f", the limit on the rank costs up to {max(cuts):.2%} of a layer's energy"
    grown = [
        layer.loss / layer.objective
        for layer in report.layers
        if layer.stage == stage.stage and layer.objective
    ]
    if grown:
        text += f" and raises the objective by {median(grown):.2%} in the median layer"
    return text


def _lost(layers: Sequence[LayerResult], index: int) -> tuple[float | None, float | None]:
    fused = [layer.left[index] for layer in layers if layer.left[index] is not None]
    averaged = [
        layer.left_averaged[index] for layer in layers if layer.left_averaged[index] is not None
    ]
    return (median(fused), median(averaged)) if fused and averaged else (None, None)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.4f}"
