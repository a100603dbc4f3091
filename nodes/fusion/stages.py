"""Run the three stages of a fusion, each with the fused changes of the earlier stages.

The text encoder is fused first, then keys and values of cross-attention on the outputs of the fused
text encoder, then all other layers on the inputs that they have while each concept is sampled with
the fused earlier stages and its own changes of these layers.

Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2 and the released code.

Note: Unlike in the paper, every concept has the same total weight, regardless of its number of
    input rows, so that concepts with an embedding per layer do not outweigh ordinary LoRAs. With
    ``own`` activations each concept is encoded and sampled with its own earlier stages, so that its
    statistics do not depend on the other concepts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import comfy.model_management
import comfy.sd
import comfy.utils
import psutil
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops import LowRank, span_basis
from ...training import Family
from ...training.files.lora_state import lora_state
from ...training.runs.fusion_store import FusionStore, MemberStatistics
from ..bridge.digests import content_digest
from ..text.layer_contexts import context_layers
from .activations import InputWatch
from .drawing import Drawing, count_evaluations, draw_prompts
from .layers import WIDEST, FusedLayer, FusionStage, Layout, context_index, module_at
from .report import LayerResult, StageResult
from .solve import SolverOptions, solve_from_grams, solve_from_rows
from .statistics import Member, StageSpec, collect
from .text import context_rows, count_encodings, count_real_tokens, encode_prompts, encoder_prompts

# Version of the stored statistics; increased with every change of the statistics, of the sampling
# or of the default damping.
FORMAT = 1

FusedChanges = dict[str, LowRank]  # changes by layer name


@dataclass(frozen=True)
class FusionBase:
    """The base of a fusion.

    Args:
        model: MODEL without sampling-time patches.
        clip: The base's text encoder.
        vae: The base's VAE for concepts with pictures, or None.
        family: Family of the model.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE | None
    family: Family


@dataclass(frozen=True)
class FusionOptions:
    """The options of a fusion.

    Args:
        own_activations: Whether each concept is encoded and sampled with its own earlier stages
            instead of the fused ones.
        drawing: Options of the sampling.
        solving: Options of the solver.
        store: Folder of the base's statistics; None to store nothing.
        keep_grams: Whether a Gram matrix is stored for each concept.
        writable: Whether new statistics are stored.
        scratch: Temporary folder, removed after the fusion; None to hold everything in memory.
    """

    own_activations: bool
    drawing: Drawing
    solving: SolverOptions
    store: Path | None
    keep_grams: bool
    writable: bool
    scratch: Path | None


@dataclass
class FusionOutcome:
    """The outcome of all stages.

    Args:
        changes: Fused changes by layer name.
        layers: Results of the layers.
        stages: Results of the stages.
        notes: Sentences for the report.
    """

    changes: FusedChanges = field(default_factory=dict)
    layers: list[LayerResult] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Stages:
    """The three stages of one fusion.

    Args:
        base: Base of the fusion.
        layout: Layers that are fused.
        members: Concepts that are fused.
        prior: Prompts on which the base's outputs are preserved, or None.
        options: Options of the fusion.
    """

    def __init__(
        self,
        base: FusionBase,
        layout: Layout,
        members: Sequence[Member],
        prior: Member | None,
        options: FusionOptions,
    ):
        self._base, self._layout, self._options = base, layout, options
        self._members, self._prior = members, prior
        self._all = [*members, *([prior] if prior else [])]
        self._outcome = FusionOutcome()
        total = len(layout.layers) + sum(self._steps(member) for member in self._all)
        self._bar = comfy.utils.ProgressBar(total)
        self._device = comfy.model_management.get_torch_device()
        self._peak = 0

    def run(self) -> FusionOutcome:
        """Run all stages and return their outcome."""
        text = self._from_grams("text", {}, self._encode)
        cross = self._from_rows(text)
        self._from_grams("spatial", {**text, **cross}, self._draw)
        return self._outcome

    def _steps(self, member: Member) -> int:
        """Return the number of steps that a member adds to the progress bar."""
        concept, steps = member.concept, 0
        if self._layout.of_stage("text"):
            steps += count_encodings(concept)
        if self._layout.of_stage("cross"):
            steps += len(encoder_prompts(concept))
        if self._layout.of_stage("spatial"):
            steps += count_evaluations(concept, self._options.drawing)
        return steps

    def _on_step(self, steps: int = 1) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(steps)
        self._peak = max(self._peak, memory_in_use(self._device))

    def _from_grams(
        self,
        stage: FusionStage,
        before: FusedChanges,
        run: Callable[[Member, InputWatch, FusedChanges], None],
    ) -> FusedChanges:
        """Fuse a stage from the Gram matrices of its inputs.

        Args:
            stage: The stage.
            before: Fused changes of the earlier stages.
            run: Function that encodes or samples a member while its inputs are collected.
        """
        layers = self._layout.of_stage(stage)
        if not layers:
            return {}
        spans = self._spans(layers)
        text, clip = stage == "text", self._base.clip
        drawing = self._options.drawing

        def calls(member: Member) -> int:
            if text:
                return count_encodings(member.concept)
            return count_evaluations(member.concept, drawing)

        spec = StageSpec(
            layers=layers,
            module_at=lambda site: module_at(self._base.model, clip, site),
            spans=spans,
            count_rows=(lambda member: count_real_tokens(clip, member.concept)) if text else None,
            count_calls=calls,
            run=lambda member, watch: run(member, watch, before),
        )
        depends_on: list[object] = [stage]
        if not text:
            depends_on += [drawing, self._dependencies("text", "cross")]
        started = self._begin()
        statistics = collect(
            spec,
            self._all,
            self._open_store(stage, depends_on),
            scratch=self._scratch_store(stage),
            keep_grams=self._options.keep_grams,
            on_reuse=lambda member: self._on_step(calls(member)),
        )
        collecting = time.perf_counter() - started
        changes, results = solve_from_grams(
            layers, self._members, statistics, spans, self._options.solving, self._on_step
        )
        self._outcome.notes += statistics.notes
        self._finish(
            stage,
            changes,
            results,
            passes=statistics.passes,
            reused=statistics.reused,
            collecting_seconds=collecting,
            solving_seconds=time.perf_counter() - started - collecting,
            statistics_bytes=statistics.peak_bytes,
            in_span=sum(layer.site in spans for layer in layers),
        )
        return changes

    def _from_rows(self, text: FusedChanges) -> FusedChanges:
        """Fuse keys and values of cross-attention from the contexts that they read."""
        layers = self._layout.of_stage("cross")
        if not layers:
            return {}
        store = self._open_store("cross", ["cross", self._dependencies("text")])
        target = store if store is not None and store.writable else None
        count, started = context_layers(self._base.model), self._begin()
        rows: dict[str, list[Tensor]] = {}
        reused = 0
        for member in self._all:
            stored = None if store is None else store.member(member.digest)
            if stored is not None and len(stored.rows) == count:
                rows[member.digest] = [stored.rows[str(layer)] for layer in range(count)]
                self._on_step(len(encoder_prompts(member.concept)))
                reused += 1
                continue
            _, clip = self._patched(*self._earlier_changes(member, text))
            rows[member.digest] = context_rows(clip, member.concept, count, self._on_step)
            by_layer = {str(layer): part for layer, part in enumerate(rows[member.digest])}
            if target is not None:
                try:
                    target.keep_member(member.digest, MemberStatistics(rows=by_layer))
                except RuntimeError as error:
                    self._outcome.notes.append(f"the statistics are not kept: {error}")
                    target = None
        index = context_index(self._base.model)

        def rows_of(member: Member) -> Callable[[FusedLayer], Tensor]:
            return lambda layer: rows[member.digest][_context_of(layer, index)]

        def weighted_rows_of(member: Member) -> Callable[[FusedLayer], Tensor]:
            root = math.sqrt(member.weight)
            return lambda layer: root * rows_of(member)(layer)

        prior = None if self._prior is None else weighted_rows_of(self._prior)
        collecting = time.perf_counter() - started
        changes, results = solve_from_rows(
            layers,
            self._members,
            {member.digest: rows_of(member) for member in self._members},
            prior,
            self._options.solving,
            self._on_step,
        )
        self._finish(
            "cross",
            changes,
            results,
            passes=len(self._all) - reused,
            reused=reused,
            collecting_seconds=collecting,
            solving_seconds=time.perf_counter() - started - collecting,
            statistics_bytes=sum(4 * part.numel() for parts in rows.values() for part in parts),
            in_span=0,
        )
        return changes

    def _encode(self, member: Member, watch: InputWatch, before: FusedChanges) -> None:
        """Encode a member's prompts with its own change of the text encoder."""
        own = self._changes_of_stage(member, "text")
        _, clip = self._patched(own, member.concept.strength)
        encode_prompts(clip, member.concept, watch, self._on_step)

    def _draw(self, member: Member, watch: InputWatch, before: FusedChanges) -> None:
        """Sample a member's prompts with the earlier stages' changes and its own of this stage."""
        model, clip = self._patched(*self._earlier_changes(member, before))
        own = self._changes_of_stage(member, "spatial")
        model, clip = _with_changes(model, clip, own, member.concept.strength)
        base, drawing = self._base, self._options.drawing
        draw_prompts(
            model, clip, base.vae, base.family, member.concept, drawing, watch, self._on_step
        )

    def _earlier_changes(
        self, member: Member, fused: FusedChanges
    ) -> tuple[Mapping[str, LowRank], float]:
        """Return the earlier stages' changes with which a member is run, and their strength."""
        if not self._options.own_activations:
            return fused, 1.0
        own = {**self._changes_of_stage(member, "text"), **self._changes_of_stage(member, "cross")}
        return own, member.concept.strength

    def _changes_of_stage(self, member: Member, stage: FusionStage) -> dict[str, LowRank]:
        """Return a member's own changes of the layers of a stage."""
        names = {layer.name for layer in self._layout.of_stage(stage)}
        return {name: one for name, one in member.factors.items() if name in names}

    def _patched(
        self, changes: Mapping[str, LowRank], strength: float
    ) -> tuple[ModelPatcher, comfy.sd.CLIP]:
        return _with_changes(self._base.model, self._base.clip, changes, strength)

    def _dependencies(self, *stages: FusionStage) -> str:
        """Return a digest of the earlier stages on which a stage's statistics depend.

        It is a digest of the inputs that determine the fused changes. A digest of the changes
        themselves would depend on the order in which concepts are connected, which alters their
        last digits.
        """
        if self._options.own_activations:
            return "own"
        solving = self._options.solving
        return content_digest(
            [
                sorted((member.digest, member.weight) for member in self._all),
                [solving.damping_of(stage) for stage in stages],
                [solving.anchor, solving.rank, solving.energy],
            ]
        )

    def _scratch_store(self, stage: FusionStage) -> FusionStore | None:
        """Return the temporary store of members' statistics; None to hold them in memory."""
        if self._options.scratch is None:
            return None
        try:
            return FusionStore(self._options.scratch / stage, "")
        except RuntimeError:
            return None

    def _open_store(self, stage: FusionStage, depends_on: Sequence[object]) -> FusionStore | None:
        """Return the store of a stage's statistics; None, with a note, if it cannot be written."""
        if self._options.store is None:
            return None
        mode = "" if stage == "text" else (" own" if self._options.own_activations else " paper")
        try:
            digest = content_digest([FORMAT, *depends_on])
            folder = self._options.store / f"{stage}{mode}"
            return FusionStore(folder, digest, writable=self._options.writable)
        except RuntimeError as error:
            self._outcome.notes.append(f"the statistics are not kept: {error}")
            return None

    def _spans(self, layers: Sequence[FusedLayer]) -> dict[str, Tensor]:
        """Return the span of all concepts' factors at each site too wide for a full Gram matrix."""
        downs: dict[str, list[Tensor]] = {}
        # In this order the span does not depend on how the concepts are connected.
        ordered = sorted(self._members, key=lambda member: member.digest)
        for layer in layers:
            if layer.width > WIDEST:
                found = downs.setdefault(layer.site, [])
                found += [m.factors[layer.name].down for m in ordered if layer.name in m.factors]
        return {site: span_basis(found) for site, found in downs.items()}

    def _begin(self) -> float:
        """Reset the peak memory at the beginning of a stage, and return the time."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._peak = memory_in_use(self._device)
        return time.perf_counter()

    def _finish(
        self,
        stage: FusionStage,
        changes: FusedChanges,
        results: Sequence[LayerResult],
        *,
        passes: int,
        reused: int,
        collecting_seconds: float,
        solving_seconds: float,
        statistics_bytes: int,
        in_span: int,
    ) -> None:
        """Add a stage's changes and results to the outcome."""
        self._peak = max(self._peak, memory_in_use(self._device))
        self._outcome.changes |= changes
        self._outcome.layers += results
        self._outcome.stages.append(
            StageResult(
                stage=stage,
                layers=len(changes),
                passes=passes,
                reused=reused,
                collecting_seconds=collecting_seconds,
                solving_seconds=solving_seconds,
                statistics_bytes=statistics_bytes,
                peak_bytes=self._peak,
                in_span=in_span,
            )
        )


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes of a graphics card's tensors, or the bytes in use by the process.

    PyTorch records a card's peak since the last reset; the process is only measured at this call.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _with_changes(
    model: ModelPatcher, clip: comfy.sd.CLIP, changes: Mapping[str, LowRank], strength: float
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Return the model and the CLIP with changes applied by ComfyUI's own LoRA loader."""
    if not changes or strength == 0:
        return model, clip
    lora = dict(lora_state(changes, {}))
    patched = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    # ComfyUI returns None only in place of a model or a CLIP that is None.
    return cast("tuple[ModelPatcher, comfy.sd.CLIP]", patched)


def _context_of(layer: FusedLayer, index: Mapping[str, int]) -> int:
    """Return the index of the context that a key or value layer reads."""
    return next(number for prefix, number in index.items() if layer.site.startswith(prefix))
