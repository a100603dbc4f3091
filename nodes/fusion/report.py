"""Fusion report: results per concept, stage and layer, with their summary and table."""

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
        name: Name in a LoRA file.
        stage: Stage in which it was fused.
        rank: Rank of the fused change.
        norm: Frobenius norm of the fused change.
        average_norm: Frobenius norm of the plain average of the concepts' changes.
        norms: Frobenius norm of each concept's own change, 0 if it has none.
        residuals: Squared error of the fused change on each concept's own inputs, as a fraction of
            the effect of the concept's own change, on a sample; None if it has no change here.
        average_residuals: Squared error of the plain average in the same measure.
        damping: Absolute damping that was added to the Gram diagonal.
        solver: Solver that was used; ``eigenvalues`` if the Gram matrix was singular.
        cut: Fraction of the energy that the rank limit removed.
        objective: Fusion objective before the rank limit; None without a limit.
        loss: Increase of the objective by the rank limit.
    """

    name: str
    stage: str
    rank: int
    norm: float
    average_norm: float
    norms: tuple[float, ...]
    residuals: tuple[float | None, ...]
    average_residuals: tuple[float | None, ...]
    damping: float
    solver: str
    cut: float
    objective: float | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class StageResult:
    """One stage of the fusion.

    Args:
        stage: Name of the stage.
        layers: Number of layers that were fused.
        passes: Number of concepts that were encoded or sampled for it.
        reused: Number of concepts whose statistics were found in the store.
        collecting_seconds: Duration of the passes, including the sampling.
        solving_seconds: Duration of the closed-form solution.
        statistics_bytes: Peak size of the statistics in memory.
        peak_bytes: Peak memory of the graphics card, or of the process on a CPU.
        in_span: Number of layers too wide for full statistics.
    """

    stage: str
    layers: int
    passes: int
    reused: int
    collecting_seconds: float
    solving_seconds: float
    statistics_bytes: int
    peak_bytes: int
    in_span: int


@dataclass(frozen=True)
class ConceptResult:
    """One concept of the fusion.

    Args:
        name: Name of the concept.
        has_words: Whether it has learnt words.
        prompts: Prompts with which it was sampled.
        strength: Strength at which its change is reproduced.
        weight: Importance in the fusion.
        used: Number of layers of its file that were fused.
        ignored: Number of layers of its file that cannot be fused.
        missing: Number of layers of its file that the model does not have.
        kept_energy: Lowest fraction of energy kept of changes in other forms, by form.
    """

    name: str
    has_words: bool
    prompts: tuple[str, ...]
    strength: float
    weight: float
    used: int
    ignored: int
    missing: int
    kept_energy: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class FusionReport:
    """The results of a fusion.

    Args:
        concepts: Results of the concepts, in order.
        stages: Results of the stages, in order.
        layers: Results of the layers, stage by stage.
        notes: Sentences about anything unusual.
    """

    concepts: tuple[ConceptResult, ...]
    stages: tuple[StageResult, ...] = ()
    layers: tuple[LayerResult, ...] = ()
    notes: tuple[str, ...] = ()


def summary(report: FusionReport) -> str:
    """Return a summary in a few lines: concepts, stages, and the loss of each concept."""
    lines = [_concept_line(concept) for concept in report.concepts]
    lines += [_stage_line(stage, report) for stage in report.stages]
    for index, concept in enumerate(report.concepts):
        fused, averaged = _median_residuals(report.layers, index)
        if fused is not None and averaged is not None:
            lines.append(
                f"{concept.name}: {fused:.1%} of its effect is lost in the median layer, "
                f"{averaged:.1%} by plain averaging"
            )
    lines += report.notes
    return "\n".join(lines)


def table(report: FusionReport) -> str:
    """Return the summary, and a tab-separated line for each layer."""
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
            *(_residual_text(residual) for residual in layer.residuals),
            *(_residual_text(residual) for residual in layer.average_residuals),
        ]
        rows.append("\t".join(cells))
    return "\n".join([summary(report), "", *rows])


def _concept_line(concept: ConceptResult) -> str:
    parts = "words and LoRA" if concept.has_words else "LoRA"
    text = (
        f"{concept.name}: {parts} at strength {concept.strength:g}, weight {concept.weight:g}, "
        f"{concept.used} layers fused"
    )
    if concept.ignored:
        text += f", {concept.ignored} left out (biases, norms, embeddings)"
    if concept.missing:
        text += f", {concept.missing} not in this model"
    for form, energy in concept.kept_energy:
        text += f", {form} kept with {energy:.2%} of the energy"
    return text


def _stage_line(stage: StageResult, report: FusionReport) -> str:
    singular = sum(
        layer.stage == stage.stage and layer.solver == "eigenvalues" for layer in report.layers
    )
    reused = f", {stage.reused} found in the store" if stage.reused else ""
    text = (
        f"{STAGE_NAMES[stage.stage]}: {stage.layers} layers, {stage.passes} concepts read{reused}, "
        f"{stage.collecting_seconds:.1f} s, solved in {stage.solving_seconds:.1f} s, statistics "
        f"{stage.statistics_bytes / 2**20:.0f} MiB, peak {stage.peak_bytes / 2**20:.0f} MiB"
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


def _median_residuals(
    layers: Sequence[LayerResult], index: int
) -> tuple[float | None, float | None]:
    """Return a concept's median residuals over the layers: of fusion, and of plain averaging."""
    fused = [one for layer in layers if (one := layer.residuals[index]) is not None]
    averaged = [one for layer in layers if (one := layer.average_residuals[index]) is not None]
    return (median(fused), median(averaged)) if fused and averaged else (None, None)


def _residual_text(residual: float | None) -> str:
    return "" if residual is None else f"{residual:.4f}"
